"""Which operators the graph is made of: core ones, and those that lowering wants whole."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import default_decompositions

_aten = torch.ops.aten

# Operators with a good kernel of their own, whose decomposition would only have to be recognised again.
WHOLE: frozenset[OpOverload] = frozenset(
    {
        _aten.linear.default,
        _aten.layer_norm.default,
        _aten.silu.default,
        _aten.gelu.default,
        _aten.softmax.int,
        _aten.embedding.default,
    }
)

_NO_OPS: frozenset[OpOverload] = frozenset({_aten.alias.default, _aten.detach.default})


@cache
def decompositions() -> Mapping[OpOverload, Callable[..., Any]]:
    """The core decompositions and those of all composite operators, less the operators in ``WHOLE``.

    Collecting them takes longer than tracing a small graph with them.
    """
    table: dict[OpOverload, Callable[..., Any]] = dict(default_decompositions().items())  # type: ignore[no-untyped-call]
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"):
        namespace, _, operator = name.partition("::")
        packet, _, overload = operator.partition(".")
        found = getattr(getattr(_aten, packet, None), overload or "default", None) if namespace == "aten" else None
        if isinstance(found, OpOverload):
            table.setdefault(found, found.decompose)
    table |= dict.fromkeys(_NO_OPS, lambda value: value)
    return {op: rule for op, rule in table.items() if op not in WHOLE}
