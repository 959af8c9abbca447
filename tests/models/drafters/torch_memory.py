"""A drafter run in plain torch: rings by the reference operators, a transformers model as target, and samplers."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

import dspark_compiler.graph.draft_ops
import dspark_compiler.graph.sampling_ops  # noqa: F401  (both define torch.ops.dspark)
from dspark_compiler.models.drafters.base import Drafter


class TorchMemory:
    """Rings of ``batch`` sequences; ``length`` int32 [batch] are their confirmed tokens.

    ``spare`` places hold what is not confirmed yet: as many as the widest verify has tokens.
    """

    def __init__(self, drafter: Drafter, batch: int, spare: int) -> None:
        self.spare = spare
        window = drafter.config.context_window
        self.rings = {
            name: torch.zeros(batch, ring.heads, (1 if ring.short else window) + spare, ring.size)
            for name, ring in drafter.rings().items()
        }
        self.length = torch.zeros(batch, dtype=torch.int32)

    def write(self, name: str, rows: Tensor) -> None:
        torch.ops.dspark.write_ring(rows, self.rings[name], self.length)

    def last(self, name: str) -> Tensor:
        row: Tensor = torch.ops.dspark.read_ring(self.rings[name], self.length)
        return row

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        rings = self.rings[f"k.{layer}"], self.rings[f"v.{layer}"]
        mixed: Tensor = torch.ops.dspark.block_attention(q, k, v, *rings, self.length, self.spare, scale)
        return mixed

    def confirm(self, tokens: Tensor | int) -> None:
        """Of the tokens written last, the first ``tokens`` of each sequence stay."""
        self.length = self.length + torch.as_tensor(tokens, dtype=torch.int32)


class ModelTarget:
    """What a drafter shares with a transformers model, and what it reads of it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    def embed(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def read(self, ids: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Outputs [b,S,d] of decoder layers (-1: the embedding), and what the head reads, given ids [b,S]."""
        out = self.model(ids, output_hidden_states=True)
        return [out.hidden_states[layer + 1] for layer in layers], out.hidden_states[-1]


def greedy(step: int, logits: Tensor) -> tuple[Tensor, Tensor]:
    """A Sampler: the most likely token, with certainty."""
    tokens = logits.argmax(dim=-1)
    return tokens, torch.nn.functional.one_hot(tokens, logits.shape[-1]).float()


class Sampling:
    """A Sampler with the artifact's own operators: ``uniform`` [b,g], a temperature for all sequences."""

    def __init__(self, uniform: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> None:
        self.uniform = uniform
        batch = uniform.shape[0]
        self.knobs = (
            torch.full((batch,), temperature),
            torch.full((batch,), top_k, dtype=torch.int32),
            torch.full((batch,), top_p),
            torch.zeros(batch),
        )

    def __call__(self, step: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        probs = torch.ops.dspark.token_probs(logits[:, None], *self.knobs)[:, 0]
        return torch.ops.dspark.draw(probs, self.uniform[:, step]), probs


def remember(drafter: Drafter, target: ModelTarget, memory: TorchMemory, ids: Tensor, begin: int, end: int) -> None:
    """Writes tokens begin … end-1 of ids [b,S], which follow the confirmed ones, without confirming them."""
    taps, final = target.read(ids[:, :end], drafter.config.target_layer_ids)
    positions = torch.arange(begin, end).expand(ids.shape[0], -1)
    drafter.remember(
        [tap[:, begin:] for tap in taps],
        final[:, begin:] if drafter.reads_final_hidden else None,
        ids[:, begin:end],
        positions,
        target,
        memory,
    )
