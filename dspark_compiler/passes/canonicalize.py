"""One way to write each thing: nodes that do nothing go, equal forms become the same form.

Afterwards there are no copies, no-op casts or split tuples; every change of shape is ``reshape`` with a full
static shape (a strided view would have to be proved safe after each rewrite), every swap of axes ``permute``,
and a param that is added to or multiplied with a value stands on its right.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, fx

from dspark_compiler.graph.printer import operator_name
from dspark_compiler.graph.program import EntryPoint, Program, Role
from dspark_compiler.graph.remarks import Match
from dspark_compiler.graph.rewrite import emit, erase_dead
from dspark_compiler.graph.values import spec_of
from dspark_compiler.passes.base import Pass, PassResult

aten = torch.ops.aten

# What to use in place of a node; None leaves it as it is.
Simplify: TypeAlias = Callable[[fx.Node], fx.Node | None]


def _operand(node: fx.Node, index: int = 0) -> fx.Node:
    operand = node.args[index]
    assert isinstance(operand, fx.Node)
    return operand


def _argument(node: fx.Node, index: int, name: str, default: Any) -> Any:
    """An argument given by position, by name, or not at all."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _integers(argument: Any) -> list[int]:
    return [int(i) for i in argument]


def _drop(node: fx.Node) -> fx.Node:
    return _operand(node)


def _dropout(node: fx.Node) -> fx.Node | None:
    _, probability, train = node.args
    return _operand(node) if train is False or probability == 0 else None


def _cast(node: fx.Node) -> fx.Node | None:
    """A cast keeps its type alone: there is one device and one layout."""
    source, dtype = _operand(node), spec_of(node).dtype
    if spec_of(source).dtype == dtype:
        return source
    if dict(node.kwargs) == {"dtype": dtype}:
        return None
    return emit(node, aten._to_copy.default, (source,), {"dtype": dtype})


def _reshape(node: fx.Node) -> fx.Node | None:
    source, shape = _operand(node), list(spec_of(node).shape)
    if source.target is aten.reshape.default:
        source = _operand(source)
    if list(spec_of(source).shape) == shape:
        return source
    if node.target is aten.reshape.default and node.args == (source, shape):
        return None
    return emit(node, aten.reshape.default, (source, shape))


def _permute(node: fx.Node) -> fx.Node | None:
    source, rank = _operand(node), len(spec_of(node).shape)
    order = list(range(rank))
    if node.target is aten.permute.default:
        order = [d % rank for d in _integers(node.args[1])]
    elif node.target is aten.t.default:
        order.reverse()
    else:  # transpose.int
        one, other = (d % rank for d in _integers(node.args[1:]))
        order[one], order[other] = order[other], order[one]
    if source.target is aten.permute.default:
        inner = _integers(source.args[1])
        source, order = _operand(source), [inner[d] for d in order]
    if order == sorted(order):
        return source
    if node.target is aten.permute.default and node.args == (source, order):
        return None
    return emit(node, aten.permute.default, (source, order))


def _expand(node: fx.Node) -> fx.Node | None:
    source, shape = _operand(node), list(spec_of(node).shape)
    if list(spec_of(source).shape) == shape:
        return source
    if node.args == (source, shape) and not node.kwargs:
        return None
    return emit(node, aten.expand.default, (source, shape))


def _cat(node: fx.Node) -> fx.Node | None:
    """Empty pieces (a model that rotates all of a head, and passes the rest through) are left out."""
    pieces, dim = list(node.args[0]), _argument(node, 1, "dim", 0)  # type: ignore[arg-type]
    kept = [piece for piece in pieces if 0 not in spec_of(piece).shape]
    if len(kept) == 1:
        only: fx.Node = kept[0]
        return only
    return emit(node, aten.cat.default, (kept, dim)) if kept and len(kept) < len(pieces) else None


def _slice(node: fx.Node) -> fx.Node | None:
    """All four of dim, start, end and step become plain numbers within bounds; step 1 is left out."""
    source = _operand(node)
    shape = spec_of(source).shape
    if spec_of(node).shape == shape and _argument(node, 4, "step", 1) == 1:
        return source
    dim = _argument(node, 1, "dim", 0) % len(shape)
    step = _argument(node, 4, "step", 1)
    start, end, _ = slice(_argument(node, 2, "start", None), _argument(node, 3, "end", None), step).indices(shape[dim])
    args = (source, dim, start, end) if step == 1 else (source, dim, start, end, step)
    return None if node.args == args else emit(node, aten.slice.Tensor, args)


def _piece(node: fx.Node) -> fx.Node | None:
    """``getitem`` of a split is a slice."""
    split, index = node.args
    if not isinstance(split, fx.Node) or split.target not in _SPLITS:
        return None
    assert isinstance(index, int)
    dim = _argument(split, 2, "dim", 0) % len(spec_of(node).shape)
    sizes = [piece.shape[dim] for piece in split.meta["val"]]
    start = sum(sizes[:index])
    source = _operand(split)
    if sizes[index] == spec_of(source).shape[dim]:
        return source
    return emit(node, aten.slice.Tensor, (source, dim, start, start + sizes[index]))


def _neutral(neutral: float) -> Simplify:
    """For an operator whose right operand does nothing when it is ``neutral``."""

    def simplify(node: fx.Node) -> fx.Node | None:
        left, right = node.args[:2]
        if isinstance(left, fx.Node) and isinstance(right, int | float) and right == neutral:
            return left if spec_of(left) == spec_of(node) else None
        return None

    return simplify


def _param_right(neutral: float) -> Simplify:
    """The same for a commutative operator, which also gets its param on the right."""
    drop = _neutral(neutral)

    def simplify(node: fx.Node) -> fx.Node | None:
        left, right = node.args[:2]
        if isinstance(left, fx.Node) and isinstance(right, fx.Node) and not node.kwargs:
            if _is_param(left) and not _is_param(right):
                node.args = (right, left)
            return None
        return drop(node)

    return simplify


def _is_param(node: fx.Node) -> bool:
    return node.meta.get("role") is Role.PARAM


_SPLITS = (aten.split_with_sizes.default, aten.split.Tensor, aten.chunk.default)

_RULES: Mapping[Any, Simplify] = {
    aten.alias.default: _drop,
    aten.clone.default: _drop,
    aten.contiguous.default: _drop,
    aten.detach.default: _drop,
    aten.lift_fresh_copy.default: _drop,
    aten.dropout.default: _dropout,
    aten._to_copy.default: _cast,
    aten.to.dtype: _cast,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.permute.default: _permute,
    aten.transpose.int: _permute,
    aten.t.default: _permute,
    aten.expand.default: _expand,
    aten.slice.Tensor: _slice,
    aten.cat.default: _cat,
    operator.getitem: _piece,
    aten.mul.Tensor: _param_right(1),
    aten.add.Tensor: _param_right(0),
    aten.div.Tensor: _neutral(1),
    aten.sub.Tensor: _neutral(0),
}


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Drops nodes that do nothing and settles on one form for the others; values stay bit for bit."""

    name: ClassVar[str] = "canonicalize"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply."""
        return PassResult(program, tuple(match for entry in program.entries.values() for match in _canonicalize(entry)))


def _canonicalize(entry: EntryPoint) -> list[Match]:
    """One walk in order: what a node reads has its final form by then."""
    graph = entry.graph.graph
    matched: dict[str, Match] = {}
    old = list(graph.nodes)
    there = set(old)

    def note(node: fx.Node, what: str) -> None:
        matched[node.name] = Match(node.name, what, entry.name)

    for node in old:
        if node.op != "call_function":
            continue
        if node.target is aten._assert_tensor_metadata.default:  # shapes and types are static and verified
            note(node, f"{operator_name(node)}: dropped")
            graph.erase_node(node)
            continue
        simplify = _RULES.get(node.target)
        if simplify is None or not isinstance(node.meta.get("val"), Tensor):
            continue
        args = node.args
        replacement = simplify(node)
        if replacement is not None:
            node.replace_all_uses_with(replacement)
            kept = "dropped" if replacement in there else f"becomes {operator_name(replacement)}"
            note(node, f"{operator_name(node)}: {kept}")
        elif node.args != args:
            note(node, f"{operator_name(node)}: param to the right")
    for name in erase_dead(graph):
        matched.setdefault(name, Match(name, "nobody uses it", entry.name))
    return list(matched.values())
