"""The attention and mask functions given to transformers, so that every layer calls ``dspark::attention``.

The mask decides what a query sees, so it is the one source of a layer's window: the mask function turns the predicate
transformers hands it into a ``CausalMask``, models carry that to their layers as they would carry a tensor, and the
attention function reads it there. A layer whose mask came by another way is refused rather than guessed at.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

import dspark_compiler.graph.ops  # noqa: F401  (defines torch.ops.dspark)
from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.models import Family

SEAM = "dspark"

_MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# Tensors that families hand on to attention functions and that change nothing there: rope is applied already.
_APPLIED_ALREADY = frozenset({"position_ids", "position_embeddings", "cos", "sin"})

# Positions beyond which two masks that agree so far are taken to be the same.
_FURTHEST_PROBE = 1 << 20


@dataclass(frozen=True)
class CausalMask:
    """Causal, and within the last ``window`` positions if ``window`` > 0."""

    window: int


class Attend(Protocol):
    """What ``dspark::attention`` computes, and has the arguments of."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        scale: float,
        window: int,
        softcap: float,
        sinks: Tensor | None,
        /,
    ) -> Tensor:
        """See graph/ops.py."""


@contextmanager
def seam(model: PreTrainedModel, family: Family, attend: Attend = torch.ops.dspark.attention) -> Iterator[None]:
    """Within, ``model`` calls ``attend`` in each layer; its former implementations come back after."""
    # What is left registered under our own name is harmless: whoever comes next registers anew.
    AttentionInterface.register(SEAM, partial(_attention, attend))
    AttentionMaskInterface.register(SEAM, _mask)
    attention, experts = model.config._attn_implementation, model.config._experts_implementation
    model.set_attn_implementation(SEAM)
    if family.experts is not None:
        model.set_experts_implementation(family.experts)
    try:
        if model.config._attn_implementation != SEAM:
            raise UnsupportedModelError(
                f"{type(model).__name__}: computes attention itself, not through transformers' attention interface"
            )
        yield
    finally:
        model.set_attn_implementation(attention)
        if family.experts is not None:
            model.set_experts_implementation(experts)


def _attention(
    attend: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Query [b,H,S,D], key [b,G,S,D], value [b,G,S,Dv] -> ([b,S,H,Dv], no weights), as transformers wants it."""
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise _refused(module, "has no layer_idx, so its keys and values have no place in the cache")
    if getattr(module, "is_cross_attention", False) or key.shape[2] != query.shape[2]:
        raise _refused(module, "attends to another sequence (cross attention)")
    if not isinstance(attention_mask, CausalMask):
        raise _refused(module, "takes a mask that was not made through transformers' mask interface")
    if dropout != 0.0:
        raise _refused(module, f"asks for dropout {dropout}; put the model in eval mode")
    foreign = [k for k, v in kwargs.items() if isinstance(v, Tensor) and k not in _APPLIED_ALREADY]
    if foreign:
        raise _refused(module, f"gives attention a tensor it has no place for: {', '.join(foreign)}")
    if kwargs.get("is_causal") is False:
        raise _refused(module, "is not causal")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    out = attend(query, key, value, layer, scale, attention_mask.window, float(softcap or 0.0), s_aux)
    return out, None


def _mask(*, mask_function: _MaskFunction, config: PretrainedConfig, **_: Any) -> CausalMask:
    """The mask function of the seam; ``mask_function(batch, head, query, key)`` is True where the key is seen."""
    furthest = min(getattr(config, "max_position_embeddings", _FURTHEST_PROBE), _FURTHEST_PROBE)
    # Tracing modes belong to a thread: in another one, the predicate meets real numbers.
    with ThreadPoolExecutor(1) as pool:
        window = pool.submit(window_of, mask_function, furthest).result()
    if window is None:
        raise UnsupportedModelError(
            f"{config.model_type}: its attention mask is neither causal nor a sliding window (bidirectional, chunked "
            "and prefix masks cannot be compiled)"
        )
    return CausalMask(window)


def window_of(mask_function: _MaskFunction, length: int) -> int | None:
    """The window of a mask over ``length`` positions: 0 if it is plainly causal, None if it is neither."""
    zero = torch.zeros(1, 1, dtype=torch.int64)
    keys = torch.arange(length)[None]

    def visible(queries: Tensor) -> Tensor | None:
        seen = mask_function(zero, zero, queries, keys)
        # A predicate over traced tensors (padding, packing) has no answer that holds for every call.
        return seen.expand(len(queries), length) if type(seen) is Tensor else None

    last = visible(torch.tensor([[length - 1]]))
    if last is None:
        return None
    window = int(last.sum())
    probes = {0, 1, window // 2, window - 1, window, window + 1, 2 * window, length // 2, length - 1}
    queries = torch.tensor(sorted(p for p in probes if 0 <= p < length))[:, None]
    seen = visible(queries)
    expected = (keys <= queries) & (keys > queries - window)
    if seen is None or not torch.equal(seen, expected):
        return None
    return 0 if window == length else window


def _refused(module: nn.Module, why: str) -> UnsupportedModelError:
    layer = getattr(module, "layer_idx", None)
    where = type(module).__name__ if layer is None else f"{type(module).__name__} of layer {layer}"
    return UnsupportedModelError(f"{where}: {why}")
