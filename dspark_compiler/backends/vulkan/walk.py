"""A walk over TIR: the children of each node that a lowered device function may hold."""

from collections.abc import Iterator
from typing import Any

_PAIR = ("a", "b")
_CHILDREN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod", "FloorDiv", "FloorMod", "Min", "Max"), _PAIR),
    **dict.fromkeys(("EQ", "NE", "LT", "LE", "GT", "GE", "And", "Or"), _PAIR),
    **dict.fromkeys(("BitwiseAnd", "BitwiseOr", "BitwiseXor", "LShift", "RShift"), _PAIR),
    **dict.fromkeys(("Not", "BitwiseNot"), ("a",)),
    "Cast": ("value",),
    "Select": ("condition", "true_value", "false_value"),
    "Ramp": ("base", "stride"),
    "Broadcast": ("value",),
    "Shuffle": ("vectors", "indices"),
    "Let": ("value", "body"),
    "TensorLoad": ("indices",),
    "Call": ("args",),
    "SeqStmt": ("seq",),
    "For": ("min", "extent", "body"),
    "While": ("condition", "body"),
    "IfThenElse": ("condition", "then_case", "else_case"),
    "AttrStmt": ("value", "body"),
    "BufferStore": ("value", "indices"),
    "Evaluate": ("value",),
    "Bind": ("value",),
    "DeclBuffer": ("data",),
}


def walk(node: Any) -> Iterator[Any]:
    """All nodes, those above before those below, in the order of execution."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        for field in reversed(_CHILDREN.get(type(node).__name__, ())):
            child = getattr(node, field)
            if child is None:
                continue
            if type(child).__name__ == "Array":
                waiting.extend(child[::-1])  # several times as fast as reversed
            else:
                waiting.append(child)


def reads_memory(expr: Any) -> bool:
    """Whether computing an expression reads a buffer, which is wrong where its condition does not hold."""
    return any(type(node).__name__ == "TensorLoad" for node in walk(expr))
