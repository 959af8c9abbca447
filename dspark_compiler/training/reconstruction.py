"""What a model looks back at when it has to repeat a text: how much each of the text's tokens matters.

KVzip (Kim et al. 2025, arXiv 2505.23416) lets the model read a context, then a request to repeat it and the context
again; a key that nobody looks at meanwhile is not needed. With the weighting of KVzap (Devoto et al. 2026, arXiv
2601.07891, eq. 2), the importance of key i to its key/value head is the largest, over queries j after the context and
query heads of the group, of a_ji |W v_i| / |h_j|: attention, times the length of what the value adds to the residual
stream, over the length of the hidden state it is added to.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from dspark_compiler.graph.reference import attention_weights, causal_mask
from dspark_compiler.training.sites import ATTENTION, Site, hidden_states, run

REQUEST = "\n\nRepeat the previous text exactly.\n\n"

# Queries attended at a time: bounds the probabilities held to H * _ROWS * length.
_ROWS = 256

# Importance below this makes no difference to any output; it keeps logarithms finite.
_FLOOR = 1e-9

Take = Callable[[int, Tensor, Tensor], None]


def reconstruct(model: PreTrainedModel, sites: Sequence[Site], context: Tensor, request: Tensor, take: Take) -> None:
    """Has ``model`` repeat ``context`` and hands out, layer by layer, hidden states and importance of its tokens.

    ``context`` [T] and ``request`` [P] are token ids; the model's ``seam`` is in place. ``take(layer, hidden [T,K],
    target [T,G])`` gets the natural logarithm of importance as its target.
    """
    ids = torch.cat([context, request, context])
    with ExitStack() as stack:
        observer = _Observer(sites, len(context), take)
        for layer, site in enumerate(sites):
            hook = site.reader.register_forward_pre_hook(observer.reader_hook(layer), with_kwargs=True)
            stack.callback(hook.remove)
        stack.enter_context(observer)
        run(model, ids[None])


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes ``dspark::attention`` itself, a few queries at a time, and sees the probabilities on the way."""

    def __init__(self, sites: Sequence[Site], context: int, take: Take) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sites = sites
        self._context = context
        self._take = take
        self._hidden: dict[int, Tensor] = {}

    def reader_hook(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """A pre-hook for the layer's reader that keeps what it is given."""

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._hidden[layer] = hidden_states(args, kwargs)[0]

        return keep

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not ATTENTION:
            return func(*args, **(kwargs or {}))
        query, key, value, layer, scale, window, softcap, sinks = args
        hidden = self._hidden.pop(layer)
        out, paid = attend(query, key, value, scale, window, softcap, sinks, self._context, hidden)
        importance = paid * value_lengths(value[0, :, : self._context], self._sites[layer].gram)
        grouped = importance.view(value.shape[1], -1, self._context).amax(1)
        self._take(layer, hidden[: self._context], grouped.clamp(min=_FLOOR).log().T)
        return out


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
    context: int,
    hidden: Tensor,
) -> tuple[Tensor, Tensor]:
    """Attention as ``dspark::attention`` computes it, and who was looked at: out [1,S,H,Dv] and importance [H,context].

    Importance is the largest a_ji / |hidden_j| over the queries j after the first ``context`` tokens; q [1,H,S,D],
    k [1,G,S,D], v [1,G,S,Dv], hidden [S,K].
    """
    heads, length = q.shape[1:3]
    positions = torch.arange(length)
    lengths = hidden.float().norm(dim=-1)
    out = v.new_empty(1, length, heads, v.shape[3])
    importance = torch.zeros(heads, context)
    for begin in range(0, length, _ROWS):
        end = min(begin + _ROWS, length)
        mask = causal_mask(positions[begin:end], positions[:end].expand(k.shape[1], -1), window)[None]
        weights = attention_weights(q[:, :, begin:end], k[:, :, :end], mask, scale, softcap, sinks)
        values = v[:, :, :end].repeat_interleave(heads // v.shape[1], dim=1)
        out[:, begin:end] = (weights.to(v.dtype) @ values).transpose(1, 2)
        first = max(begin, context)
        if first < end:
            paid = weights[0, :, first - begin :, :context] / lengths[first:end, None]
            importance = torch.maximum(importance, paid.amax(1))
    return out, importance


def value_lengths(value: Tensor, gram: Tensor) -> Tensor:
    """The length of what each value adds to the residual stream: value [G,T,Dv], gram [H,Dv,Dv] -> [H,T]."""
    values = value.repeat_interleave(gram.shape[0] // value.shape[0], dim=0)
    squares = ((values @ gram) * values).sum(-1)
    return squares.clamp(min=0).sqrt()
