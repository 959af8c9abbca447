"""A stable text form of programs: golden tests compare it, ``--dump-ir`` writes it.

Nodes are numbered by order, so that names torch happens to give do not show. ``%`` marks values of the entry
point, ``@`` params and states by name.
"""

import itertools
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from dspark_compiler.graph.program import EntryPoint, Program, Role


def print_program(program: Program) -> str:
    """All entry points, in order, with a blank line between them."""
    return "\n".join(print_entry(entry) for entry in program.entries.values())


def print_entry(entry: EntryPoint) -> str:
    """One entry point: inputs, states and params it reads, operators, outputs. Ends with a newline."""
    return "\n".join(_lines(entry)) + "\n"


def operator_name(node: fx.Node) -> str:
    """``aten.mul.Tensor``; the overload is left out where it is the default one."""
    if isinstance(node.target, OpOverload):
        return str(node.target).removesuffix(".default")
    return "getitem" if node.target is operator.getitem else str(node.target)


def _lines(entry: EntryPoint) -> Iterator[str]:
    names: dict[fx.Node, str] = {}
    yield f"{entry.name}: {entry.kind.value}, batch {entry.batch}, width {entry.width}"
    for role in Role:
        for node in entry.placeholders(role):
            names[node] = ("%" if role is Role.INPUT else "@") + node.meta["ref"]
            yield f"  {role.value} {names[node]}: {type_text(node.meta['val'])}"
    number = itertools.count()
    for node in entry.graph.graph.nodes:
        if node.op == "call_function":
            names[node] = f"%{next(number)}"
            args = arguments_text(node, names)
            yield f"  {names[node]} = {operator_name(node)}({args}): {type_text(node.meta['val'])}"
        elif node.op == "output":
            results = zip(entry.outputs, node.args[0], strict=True)
            yield f"  return {', '.join(f'{name}={argument_text(result, names)}' for name, result in results)}".rstrip()


def type_text(value: Any) -> str:
    """``float32[1, 16, 576]``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(type_text(v) for v in value)})"
    return "none" if value is None else type(value).__name__


def arguments_text(node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    """All arguments of an operator, as in a call."""
    args = [argument_text(a, names) for a in node.args]
    return ", ".join(args + [f"{key}={argument_text(a, names)}" for key, a in node.kwargs.items()])


def argument_text(argument: Any, names: Mapping[fx.Node, str]) -> str:
    """An operator's argument, nodes by their names."""
    if isinstance(argument, fx.Node):
        return names[argument]
    if isinstance(argument, tuple | list):
        return f"[{', '.join(argument_text(a, names) for a in argument)}]"
    if isinstance(argument, torch.dtype):
        return str(argument).removeprefix("torch.")
    return str(argument)
