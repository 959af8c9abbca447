"""Where a model attends: found by watching one short pass through the seam, whatever the family calls its modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

import dspark_compiler.graph.ops  # noqa: F401  (defines torch.ops.dspark)
from dspark_compiler.errors import UnsupportedModelError

ATTENTION = torch.ops.dspark.attention.default

_PROBE_TOKENS = 4


@dataclass(frozen=True)
class Site:
    """One layer's attention.

    ``reader`` is the module that is given the hidden states which the layer's projections read. ``gram`` [H,Dv,Dv] is,
    per head, the output projection times its own transpose, so that v' gram v is the squared length of what a value v
    adds to the residual stream with a weight of one.
    """

    reader: nn.Module
    gram: Tensor
    kv_heads: int


def hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among the arguments of a ``Site.reader``: the first one, or the one of that name."""
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def run(model: PreTrainedModel, ids: Tensor) -> None:
    """Runs the layers of ``model`` over ids [1,S], without logits and without a cache."""
    positions = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        model.base_model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False)


def find_sites(model: PreTrainedModel) -> tuple[Site, ...]:
    """The attention of each layer of a model whose ``seam`` is in place.

    Raises:
        UnsupportedModelError: no linear projection follows a layer's attention, or layers differ in their KV heads.
    """
    watcher = _Watcher()
    with watcher.watching(model), watcher:
        run(model, torch.zeros(1, _PROBE_TOKENS, dtype=torch.int64))
    sites = []
    for layer in range(model.config.get_text_config().num_hidden_layers):
        if layer not in watcher.outputs:
            raise UnsupportedModelError(
                f"{type(model).__name__}: no linear projection follows the attention of layer {layer}, "
                "so the weight of a value is unknown"
            )
        heads, value_size, kv_heads = watcher.shapes[layer]
        sites.append(Site(watcher.readers[layer], _gram(watcher.outputs[layer], heads, value_size), kv_heads))
    if len({site.kv_heads for site in sites}) > 1:
        raise UnsupportedModelError(f"{type(model).__name__}: its layers differ in their number of key/value heads")
    return tuple(sites)


def _gram(projection: nn.Module, heads: int, value_size: int) -> Tensor:
    """Per head, W W' of its part W [Dv,K] of ``projection``: asked of the module, whatever the layout of its weight."""
    width = heads * value_size
    weight = next(projection.parameters())
    with torch.no_grad():
        rows: Tensor = projection(torch.cat([torch.eye(width), torch.zeros(1, width)]).to(weight.dtype)).float()
    parts = (rows[:-1] - rows[-1]).view(heads, value_size, -1)
    gram: Tensor = parts @ parts.mT
    return gram


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes, for each attention it sees, the module that led to it and the projection that follows it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.readers: dict[int, nn.Module] = {}
        self.outputs: dict[int, nn.Module] = {}
        self.shapes: dict[int, tuple[int, int, int]] = {}  # query heads, value size, key/value heads
        self._innermost: dict[int, nn.Module] = {}
        self._last: int | None = None  # the layer whose output projection is yet to come

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Within, calls of the model's modules are seen."""
        hooks: list[RemovableHandle] = [
            module.register_forward_pre_hook(self._entered, with_kwargs=True) for module in model.modules()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is ATTENTION:
            query, key, value, layer = args[:4]
            self.shapes[layer] = (query.shape[1], value.shape[3], key.shape[1])
            self.readers[layer] = self._innermost[layer]
            self._last = layer
        return out

    def _entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int):
            self._innermost[layer] = module
        if self._last is not None and self._is_projection(module, self._last):
            self.outputs[self._last] = module
            self._last = None

    def _is_projection(self, module: nn.Module, layer: int) -> bool:
        weight = getattr(module, "weight", None)
        is_linear = isinstance(weight, Tensor) and weight.ndim == 2
        return is_linear and any(module is part for part in self.readers[layer].modules())
