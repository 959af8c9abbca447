"""Rewriting helpers: emitting and erasing nodes, and pattern / check / rewrite rules that say why they decline."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from torch import fx
from torch._ops import OpOverload

from dspark_compiler.graph.printer import operator_name
from dspark_compiler.graph.program import EntryPoint, Program, Role
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.values import infer

Bindings: TypeAlias = dict[str, Any]


def is_mutating(node: fx.Node) -> bool:
    """Whether running the node writes to one of its arguments, so that it must stay even if nobody reads it."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def bound_args(node: fx.Node) -> Bindings:
    """All arguments of an operator by name, in the schema's order, whether given by place, by name or by default."""
    assert isinstance(node.target, OpOverload)
    schema = node.target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema}


def emit(before: fx.Node, target: Callable[..., Any], args: tuple[Any, ...], kwargs: Bindings | None = None) -> fx.Node:
    """A new ``call_function`` node in front of ``before``, its value worked out."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs or {})
    node.meta["val"] = infer(node)
    return node


def erase_dead(graph: fx.Graph) -> list[str]:
    """Erases operators whose results nobody uses and that write nothing; placeholders stay. Returns their names."""
    erased = []
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and not is_mutating(node):
            graph.erase_node(node)
            erased.append(node.name)
    return erased


def drop_unused_params(program: Program) -> list[str]:
    """Erases param placeholders without users, and params no entry point refers to. Returns the params' names."""
    dropped = []
    for entry in program.entries.values():
        for node in list(entry.placeholders(Role.PARAM)):
            if not node.users:
                entry.graph.graph.erase_node(node)
                dropped.append(node.meta["ref"])
    for ref in program.params.keys() - program.used_params():
        del program.params[ref]
        dropped.append(ref)
    return list(dict.fromkeys(dropped))


@dataclass(frozen=True)
class Var:
    """Stands for any argument; the same name twice must be the same thing."""

    name: str


@dataclass(frozen=True, init=False)
class Op:
    """Stands for a node of one operator without keyword arguments; literals among ``args`` must be equal."""

    target: OpOverload
    args: tuple[Any, ...]
    commutative: bool
    name: str | None

    def __init__(self, target: OpOverload, *args: Any, commutative: bool = False, name: str | None = None) -> None:
        for field, value in (("target", target), ("args", args), ("commutative", commutative), ("name", name)):
            object.__setattr__(self, field, value)


@dataclass(frozen=True)
class Maybe:
    """Stands for ``inner``, or for one application of ``target`` (with any keyword arguments) to it."""

    target: OpOverload
    inner: Any
    name: str | None = None


@dataclass(frozen=True, init=False)
class OneOf:
    """Stands for any of the alternatives, tried in order."""

    alternatives: tuple[Any, ...]

    def __init__(self, *alternatives: Any) -> None:
        object.__setattr__(self, "alternatives", alternatives)


def match(pattern: Any, value: Any) -> Bindings | None:
    """What the pattern's names stand for if it matches the node or literal ``value``, else None."""
    return next(_matches(pattern, value, {}), None)


def _matches(pattern: Any, value: Any, bound: Bindings) -> Iterator[Bindings]:
    """Every way to match, each with its bindings."""
    if isinstance(pattern, Var):
        if bound.get(pattern.name, value) is value:
            yield bound | {pattern.name: value}
    elif isinstance(pattern, OneOf):
        for alternative in pattern.alternatives:
            yield from _matches(alternative, value, bound)
    elif isinstance(pattern, Maybe):
        named = _named(bound, pattern.name, value)
        if _is_call(value, pattern.target):
            yield from _matches(pattern.inner, value.args[0], named)
        yield from _matches(pattern.inner, value, named)
    elif isinstance(pattern, Op):
        if _is_call(value, pattern.target) and not value.kwargs:
            yield from _match_op(pattern, value, _named(bound, pattern.name, value))
    elif not isinstance(value, fx.Node) and pattern == value:
        yield bound


def _is_call(value: Any, target: OpOverload) -> bool:
    return isinstance(value, fx.Node) and value.target is target


def _match_op(pattern: Op, node: fx.Node, bound: Bindings) -> Iterator[Bindings]:
    if len(node.args) != len(pattern.args):
        return
    orders = [node.args, node.args[::-1]] if pattern.commutative else [node.args]
    for order in orders:
        yield from _match_all(pattern.args, order, bound)


def _match_all(patterns: Sequence[Any], values: Sequence[Any], bound: Bindings) -> Iterator[Bindings]:
    if not patterns:
        yield bound
        return
    for found in _matches(patterns[0], values[0], bound):
        yield from _match_all(patterns[1:], values[1:], found)


def _named(bound: Bindings, name: str | None, node: Any) -> Bindings:
    return bound if name is None else bound | {name: node}


class Rule(ABC):
    """One rewrite: where the pattern matches and the check has no objection, the node gives way to another."""

    pattern: ClassVar[Any]

    @abstractmethod
    def check(self, node: fx.Node, found: Bindings) -> str | None:
        """Why the match must be left alone, or None."""

    @abstractmethod
    def rewrite(self, node: fx.Node, found: Bindings) -> fx.Node:
        """The node to use in place of the matched one."""


@dataclass(frozen=True)
class Applied:
    """What came of applying rules: the rewrites made, and the matches left alone."""

    matched: tuple[Match, ...]
    declined: tuple[Declined, ...]


def apply_rules(entry: EntryPoint, rules: Sequence[Rule]) -> Applied:
    """Tries each rule at each node, last node first, so that the widest match wins; erases what died."""
    graph = entry.graph.graph
    matched, declined = [], []
    for node in list(reversed(graph.nodes)):
        if node.op != "call_function" or (not node.users and not is_mutating(node)):
            continue
        for rule in rules:
            found = match(rule.pattern, node)
            if found is None:
                continue
            reason = rule.check(node, found)
            if reason is not None:
                declined.append(Declined(node.name, reason, entry.name))
                continue
            replacement = rule.rewrite(node, found)
            node.replace_all_uses_with(replacement)
            _erase_chain(node)
            matched.append(Match(node.name, f"{type(rule).__name__}: {_names(replacement)}", entry.name))
            break
    return Applied(tuple(matched), tuple(declined))


def _names(node: fx.Node) -> str:
    return operator_name(node) if node.op == "call_function" else node.name


def _erase_chain(node: fx.Node) -> None:
    """Erases a dead node and the operands that die with it."""
    if node.op != "call_function" or node.users or is_mutating(node):
        return
    operands = node.all_input_nodes
    node.graph.erase_node(node)
    for operand in operands:
        _erase_chain(operand)
