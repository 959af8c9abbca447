"""The frozen target, as training sees it: what its layers hand on, its embedding and its head.

b sequences, S tokens, d hidden size, m taps, V vocabulary, R rows.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.checkpoint import Source
from dspark_compiler.frontend.layers import decoder_layers
from dspark_compiler.training.heads.attention import run_target, target_attention
from dspark_compiler.training.heads.captured import CapturedRead

_PROBE = 4  # tokens
_AGREES = 0.05  # relative, which bfloat16 stays well under


class FrozenTarget:
    """A model without gradients; ``dtype`` by default is bfloat16 on a GPU, float32 on the CPU.

    Raises:
        UnsupportedModelError: its layers cannot be found, or its embedding or head is more than a scaled table.
    """

    def __init__(self, source: Source, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.device = device
        self.dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        self.model: PreTrainedModel = source.load(self.dtype).to(device)
        self.eos_token_ids = source.eos_token_ids
        self.layers = decoder_layers(self.model)
        self._captured: dict[tuple[int, ...], CapturedRead] = {}  # by taps
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        self.vocab_size = int(head.weight.shape[0])
        embedded, given, final, logits = self._probe()
        name = type(self.model).__name__
        self._embed_scale = _scale(embedded, given, f"{name}: its first layer is given more than scaled embeddings")
        self._embedding = embedding
        plain = final @ head.weight.float().T
        scale = _scale(plain, logits, f"{name}: its head does more than multiply (a soft cap, a bias)")
        self.head: Tensor = (head.weight.float() * scale).to(self.dtype)

    def embed(self, ids: Tensor) -> Tensor:
        """Ids [...] -> what the first layer is given, float32 [...,d]."""
        embedded: Tensor = self._embedding(ids).float() * self._embed_scale
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states [R,d] -> float32 [R,V]."""
        return multiply(hidden.to(self.dtype), self.head)

    def read(self, ids: Tensor, taps: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Outputs [b,S,d] of the layers ``taps`` (-1: what the first one is given), and the final hidden states.

        On a GPU they hold until the next call.
        """
        key = tuple(taps)
        if self.device.type == "cuda" and key not in self._captured:
            self._captured[key] = CapturedRead(partial(self._read, key))
        *found, final = (self._captured.get(key) or partial(self._read, key))(ids)
        return found, final

    def _read(self, taps: Sequence[int], ids: Tensor) -> tuple[Tensor, ...]:
        """The same, final states last."""
        found: dict[int, Tensor] = {}
        hooks = [self._hook(layer, found) for layer in taps]
        try:
            with target_attention(self.model):
                final = run_target(self.model, ids, torch.arange(ids.shape[1], device=ids.device).expand_as(ids))
        finally:
            for hook in hooks:
                hook.remove()
        return (*(found[layer] for layer in taps), final)

    def _hook(self, layer: int, found: dict[int, Tensor]) -> Any:
        def keep(_module: nn.Module, _given: object, out: Any) -> None:
            found[layer] = out[0] if isinstance(out, tuple) else out

        def keep_given(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[layer] = args[0] if args else kwargs["hidden_states"]

        if layer < 0:
            return self.layers[0].register_forward_pre_hook(keep_given, with_kwargs=True)
        return self.layers[layer].register_forward_hook(keep)

    @torch.no_grad()
    def _probe(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings, what the first layer is given, final hidden states and logits of a few tokens, in float32."""
        ids = torch.arange(1, 1 + _PROBE, device=self.device)[None]
        given, final = self.read(ids, [-1])
        positions = torch.arange(_PROBE, device=self.device)[None]
        with target_attention(self.model):
            logits = self.model(
                input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False
            ).logits
        embedded = self.model.get_input_embeddings()(ids)
        return embedded.float(), given[0].float(), final.float(), logits.float()


def multiply(rows: Tensor, table: Tensor) -> Tensor:
    """Rows [R,d] times a table [V,d] of the same type -> float32 [R,V], summed and kept in float32."""
    if rows.dtype is torch.float32:
        return rows @ table.T
    if rows.is_cuda:
        out: Tensor = torch.ops.aten.mm.dtype(rows, table.T, torch.float32)
        return out
    return rows.float() @ table.float().T


def _scale(plain: Tensor, scaled: Tensor, otherwise: str) -> float:
    """The number ``plain`` is multiplied by to give ``scaled``."""
    scale = float((plain * scaled).sum() / plain.square().sum())
    if (scaled - scale * plain).norm() > _AGREES * scaled.norm():
        raise UnsupportedModelError(f"{otherwise}; heads cannot be trained for it")
    return scale if abs(scale - 1) > _AGREES / 10 else 1.0
