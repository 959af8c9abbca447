"""What depends on params and literals alone is computed now and becomes a param itself.

Examples: Gemma's 1 + weight, the transpose of a GPT-2 weight, masks, embedding scales. A result may be at most
64 KiB bigger than the params it makes superfluous; bigger ones stay computed at run time.
"""

import hashlib
import operator
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from dspark_compiler.graph.program import EntryPoint, Program, Role, TensorSpec
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.rewrite import drop_unused_params, erase_dead, is_mutating
from dspark_compiler.graph.values import infer, spec_of
from dspark_compiler.passes.base import Pass, PassResult

aten = torch.ops.aten

_SLACK_BYTES = 64 * 1024

# Broadcasting is free at run time and would only take memory as a param.
_NEVER_A_RESULT = (aten.expand.default,)

# Operators that take a literal where they take a tensor without axes.
_TAKES_NUMBER = (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor)


@dataclass(frozen=True)
class FoldConstants(Pass):
    """See the module."""

    name: ClassVar[str] = "fold_constants"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply."""
        constants = {name: _constants(entry) for name, entry in program.entries.items()}
        plan = _affordable(program, constants)
        _fold(program, plan)
        matched = [
            Match(node.name, "folded into a param", entry.name)
            for places in plan.sites.values()
            for entry, node in places
        ]
        matched += [match for entry in program.entries.values() for match in _inline_numbers(program, entry)]
        for entry in program.entries.values():
            erase_dead(entry.graph.graph)
        drop_unused_params(program)
        return PassResult(program, tuple(matched), tuple(plan.refused.values()))


@dataclass(frozen=True)
class _Constant:
    """A node's expression: ``key`` is the same for the same expression anywhere, ``reads`` are the params in it."""

    key: str
    reads: frozenset[str]


def _constants(entry: EntryPoint) -> dict[fx.Node, _Constant]:
    """Every node whose value is known at compile time, params included."""
    known: dict[fx.Node, _Constant] = {}
    for node in entry.graph.graph.nodes:
        if node.op == "placeholder" and node.meta["role"] is Role.PARAM:
            known[node] = _Constant(f"param {node.meta['ref']}", frozenset([node.meta["ref"]]))
        elif node.op == "call_function" and _is_pure(node) and all(i in known for i in node.all_input_nodes):
            # A node prints as its name, which differs between entry points: print its key instead.
            args = fx.map_arg((node.args, dict(node.kwargs)), lambda n: known[n].key)
            key = hashlib.sha256(f"{node.target} {args}".encode()).hexdigest()
            known[node] = _Constant(key, frozenset().union(*(known[i].reads for i in node.all_input_nodes)))
    return known


def _is_pure(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem
    return not is_mutating(node) and torch.Tag.nondeterministic_seeded not in node.target.tags


@dataclass
class _Plan:
    """Which expressions to fold: the nodes of each by entry point, who reads each param, what was too big."""

    sites: dict[str, list[tuple[EntryPoint, fx.Node]]]  # by key
    reads: dict[str, frozenset[str]]  # params read, by key
    readers: dict[str, set[str]]  # by param: keys of expressions, and "" for a use at run time
    refused: dict[str, Declined]  # by key


def _affordable(program: Program, constants: dict[str, dict[fx.Node, _Constant]]) -> _Plan:
    """The widest expressions whose results fit the bound; refusing one puts its operands up instead."""
    refused: dict[str, Declined] = {}
    while True:
        plan = _Plan(defaultdict(list), {}, defaultdict(set), refused)
        for name, entry in program.entries.items():
            for node, found in _demanded(entry, constants[name], refused):
                if node.op == "placeholder":
                    plan.readers[node.meta["ref"]].add("")
                    continue
                plan.sites[found.key].append((entry, node))
                plan.reads[found.key] = found.reads
                for ref in found.reads:
                    plan.readers[ref].add(found.key)
        too_big = {}
        for key, sites in plan.sites.items():
            entry, node = sites[0]
            replaced = sum(program.params[ref].nbytes for ref in plan.reads[key] if plan.readers[ref] == {key})
            extra = _bytes(spec_of(node)) - replaced
            if extra > _SLACK_BYTES:
                too_big[key] = Declined(node.name, f"folding it would take {extra} more bytes", entry.name)
        if not too_big:
            return plan
        refused.update(too_big)


def _demanded(
    entry: EntryPoint, known: dict[fx.Node, _Constant], refused: dict[str, Declined]
) -> Iterator[tuple[fx.Node, _Constant]]:
    """The constants that values computed at run time need, each once, as wide as may be folded."""
    waiting = [i for n in entry.graph.graph.nodes if n not in known for i in n.all_input_nodes if i in known]
    seen: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        folds = isinstance(node.meta.get("val"), Tensor) and node.target not in _NEVER_A_RESULT
        if node.op == "placeholder" or (folds and known[node].key not in refused):
            yield node, known[node]
        else:
            waiting.extend(node.all_input_nodes)


def _fold(program: Program, plan: _Plan) -> None:
    """Evaluates expression by expression, letting go of params as soon as nothing more reads them."""
    done: set[str] = set()
    for key in sorted(plan.sites, key=lambda k: (sorted(plan.reads[k]), k)):
        sites, reads = plan.sites[key], plan.reads[key]
        value = _evaluate(sites[0][1], program, {}).contiguous()
        base = min(reads, default="constant")
        name = f"{base}.{sites[0][1].target._opname}_{key[:8]}"  # type: ignore[union-attr]
        program.params[name] = value
        for entry, node in sites:
            spec = TensorSpec(tuple(value.shape), value.dtype)
            node.replace_all_uses_with(entry.add_placeholder(Role.PARAM, name, spec))
        done.add(key)
        for ref in reads:
            if plan.readers[ref] <= done:
                del program.params[ref]


def _evaluate(node: fx.Node, program: Program, values: dict[fx.Node, Any]) -> Any:
    """The node's value, from the params; ``values`` holds what is worked out already."""
    if node.op == "placeholder":
        return program.params[node.meta["ref"]]
    if node not in values:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: _evaluate(n, program, values))
        assert callable(node.target)
        with torch.no_grad():
            values[node] = node.target(*args, **kwargs)
    return values[node]


def _inline_numbers(program: Program, entry: EntryPoint) -> list[Match]:
    """A param without axes becomes a literal of the operators that use it, if their results keep their type."""
    matched = []
    for param in list(entry.placeholders(Role.PARAM)):
        if param.meta["val"].dim() > 0:
            continue
        number = program.params[param.meta["ref"]].item()
        for user in list(param.users):
            if user.target not in _TAKES_NUMBER or user.args[1] is not param or user.args[0] is param:
                continue
            before, args = spec_of(user), user.args
            user.args = (args[0], number)
            value = infer(user)
            if TensorSpec(tuple(value.shape), value.dtype) == before:
                matched.append(Match(user.name, "takes a param without axes as a number", entry.name))
            else:
                user.args = args
    return matched


def _bytes(spec: TensorSpec) -> int:
    count = 1
    for size in spec.shape:
        count *= size
    return count * spec.dtype.itemsize
