"""Linears that read the same value become one over their stacked weights: query/key/value, gate/up.

Each output row is still the product of the same input with the same weight row. The stacked weight is made once for
all entry points, and the pieces are let go at once, so that at any time one group's weights are there twice at most.
Keys and values of a drafter's layers are projected from confirmed tokens of all layers at once, and with the queries of
a block layer by layer: where a launch costs more than a copy, such weights are in both stacks.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import ClassVar, TypeAlias

import torch
from torch import fx

from dspark_compiler.graph.program import EntryPoint, Program, Role, TensorSpec
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.rewrite import drop_unused_params, emit
from dspark_compiler.graph.values import spec_of
from dspark_compiler.passes.base import Pass, PassResult

aten = torch.ops.aten

# Where one group of weights is used: in each entry point, its linears in graph order.
_Places: TypeAlias = list[tuple[EntryPoint, list[fx.Node]]]


@dataclass(frozen=True)
class FuseProjections(Pass):
    """See the module; weights whose names begin with ``copied`` may be in several stacks."""

    copied: str | None = None
    name: ClassVar[str] = "fuse_projections"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply."""
        groups: dict[frozenset[str], _Places] = defaultdict(list)
        for entry in program.entries.values():
            for linears in _siblings(entry):
                groups[frozenset(_weight(n).meta["ref"] for n in linears)].append((entry, linears))
        users = _param_users(program)
        together = {n for places in groups.values() for _, linears in places for n in linears}
        kept, matched, declined = [], [], []
        for places in groups.values():
            reason = _objection(places, users, together if self.copied is not None else set(), self.copied or "")
            if reason is None:
                kept.append(places)
                matched += [
                    Match(linear.name, f"one of {len(linears)} fused linears", entry.name)
                    for entry, linears in places
                    for linear in linears
                ]
            else:
                declined += [Declined(linears[0].name, reason, entry.name) for entry, linears in places]
        left = Counter(ref for places in groups.values() for ref in _refs(places))
        for places in kept:
            left.subtract(_refs(places))
            _fuse(program, places, {ref for ref in _refs(places) if not left[ref]})
        drop_unused_params(program)
        return PassResult(program, tuple(matched), tuple(declined))


def _weight(linear: fx.Node) -> fx.Node:
    weight = linear.args[1]
    assert isinstance(weight, fx.Node)
    return weight


def _refs(places: _Places) -> list[str]:
    """The weights of a group."""
    return [_weight(n).meta["ref"] for n in places[0][1]]


def _bias(linear: fx.Node) -> fx.Node | None:
    bias = linear.args[2] if len(linear.args) > 2 else None
    assert bias is None or isinstance(bias, fx.Node)
    return bias


def _siblings(entry: EntryPoint) -> list[list[fx.Node]]:
    """The linears over params, two or more reading the same value, in graph order."""
    by_input: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in entry.graph.graph.nodes:
        if node.target is aten.linear.default and _weight(node).meta.get("role") is Role.PARAM:
            by_input[node.all_input_nodes[0]].append(node)
    return [linears for linears in by_input.values() if len(linears) > 1]


def _param_users(program: Program) -> dict[str, set[fx.Node]]:
    """For each param, the nodes of all entry points that read it."""
    users: dict[str, set[fx.Node]] = defaultdict(set)
    for entry in program.entries.values():
        for node in entry.placeholders(Role.PARAM):
            users[node.meta["ref"]].update(node.users)
    return users


def _objection(places: _Places, users: dict[str, set[fx.Node]], together: set[fx.Node], copied: str) -> str | None:
    """Why these linears must stay apart, or None; weights of names in ``copied`` may be those of ``together``, too."""
    linears = {n for _, members in places for n in members}
    params = [p for n in linears for p in (_weight(n), _bias(n)) if p is not None]
    for param in params:
        if param.meta.get("role") is not Role.PARAM:
            return f"the bias {param.name} is computed"
    if len({n.meta["ref"] for n in params}) * len(places) != len(params):
        return "a weight or bias is shared between the projections"
    for param in params:
        shared = together if param.meta["ref"].startswith(copied) else set()
        if not users[param.meta["ref"]] <= linears | shared:
            return f"{param.meta['ref']} has other uses"
    dtypes = sorted({str(spec_of(p).dtype) for p in params})
    if len(dtypes) > 1:
        return f"the projections mix {' and '.join(dtypes)}"
    return None


def _fuse(program: Program, places: _Places, last: set[str]) -> None:
    """Stacks a group's weights; those that are in no stack made later, ``last``, are let go."""
    first = places[0][1]
    refs = [_weight(n).meta["ref"] for n in first]
    biases = [bias.meta["ref"] if bias is not None else None for bias in map(_bias, first)]
    name = _stacked_name(refs)
    sizes = [program.params[ref].shape[0] for ref in refs]
    stacked = {name: torch.cat([program.params[ref] for ref in refs])}
    for ref in last:
        del program.params[ref]
    if any(biases):
        dtype = stacked[name].dtype
        pieces = [program.params[b] if b else torch.zeros(n, dtype=dtype) for b, n in zip(biases, sizes, strict=True)]
        stacked[f"{name.removesuffix('.weight')}.bias"] = torch.cat(pieces)
    assert not stacked.keys() & program.params.keys(), f"{name} is taken"
    program.params.update(stacked)
    program.stacked[name] = tuple(refs)
    for entry, linears in places:
        linears = sorted(linears, key=lambda n: refs.index(_weight(n).meta["ref"]))
        _replace(entry, linears, sizes, stacked)


def _replace(entry: EntryPoint, linears: list[fx.Node], sizes: list[int], stacked: dict[str, torch.Tensor]) -> None:
    """One linear over the stacked params in front of the first, and a slice of it for each."""
    params = [entry.add_placeholder(Role.PARAM, ref, TensorSpec(tuple(t.shape), t.dtype)) for ref, t in stacked.items()]
    point = min(linears)
    fused = emit(point, aten.linear.default, (point.args[0], *params))
    axis = len(spec_of(fused).shape) - 1
    start = 0
    for linear, size in zip(linears, sizes, strict=True):
        linear.replace_all_uses_with(emit(point, aten.slice.Tensor, (fused, axis, start, start + size)))
        start += size
    for linear in linears:
        entry.graph.graph.erase_node(linear)


def _stacked_name(refs: Sequence[str]) -> str:
    """``a.q.weight``, ``a.k.weight`` -> ``a.q_k.weight``; of more than four only the first and last are named."""
    parts = [ref.split(".") for ref in refs]
    head = _common(parts)
    tail = _common([p[head:][::-1] for p in parts])
    own = ["_".join(p[head : len(p) - tail]) for p in parts]
    middle = "_".join(own) if len(own) <= 4 else f"{own[0]}_to_{own[-1]}"
    return ".".join([*parts[0][:head], middle, *parts[0][len(parts[0]) - tail :]])


def _common(sequences: Sequence[Sequence[str]]) -> int:
    """How many first items all sequences share."""
    return sum(1 for _ in takewhile(lambda items: len(set(items)) == 1, zip(*sequences, strict=False)))
