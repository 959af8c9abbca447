"""What can be told of an index without computing it: the power of two it is a multiple of, and its quotient by one."""

from collections.abc import Callable, Mapping
from typing import Any

from tvm import tirx

_MOST = 1 << 16  # alignments beyond are of no use
Bound = Mapping[Any, Any]  # variables of Bind statements -> their values


def constant_of(expr: Any) -> int | None:
    """The value of an integer constant; None for anything else."""
    return int(expr.value) if type(expr).__name__ == "IntImm" else None


def alignment(expr: Any, bound: Bound) -> int:
    """The largest power of two up to 65536 that certainly divides an integer expression."""
    rule = _ALIGNMENTS.get(type(expr).__name__)
    return 1 if rule is None else min(rule(expr, bound), _MOST)


def quotient(expr: Any, divisor: int, bound: Bound) -> Any:
    """``expr`` divided by a power of two that divides it, as an expression; divided at compile time if possible."""
    if divisor == 1:
        return expr
    name, value = type(expr).__name__, constant_of(expr)
    if value is not None:
        return tirx.IntImm(expr.ty.dtype, value // divisor)
    if name in ("Add", "Sub"):
        sides = (quotient(side, divisor, bound) for side in (expr.a, expr.b))
        return type(expr)(*sides)
    if name == "Mul":
        factor = constant_of(expr.b)
        if factor is not None:
            common = min(alignment(expr.b, bound), divisor)
            rest = quotient(expr.a, divisor // common, bound)
            left = factor // common
            return rest if left == 1 else rest * tirx.IntImm(expr.ty.dtype, left)
    return tirx.shift_right(expr, tirx.IntImm(expr.ty.dtype, divisor.bit_length() - 1))


def _of_constant(expr: Any, _: Bound) -> int:
    value = int(expr.value)
    return value & -value if value else _MOST


def _of_least(*names: str) -> Callable[[Any, Bound], int]:
    def rule(expr: Any, bound: Bound) -> int:
        return min(alignment(getattr(expr, name), bound) for name in names)

    return rule


def _of_product(expr: Any, bound: Bound) -> int:
    return alignment(expr.a, bound) * alignment(expr.b, bound)


def _of_shift(expr: Any, bound: Bound) -> int:
    by = constant_of(expr.b)
    return 1 if by is None or not 0 <= by < _MOST.bit_length() else alignment(expr.a, bound) << by


def _of_mask(expr: Any, bound: Bound) -> int:
    return max(alignment(expr.a, bound), alignment(expr.b, bound))


def _of_variable(expr: Any, bound: Bound) -> int:
    value = bound.get(expr)
    return 1 if value is None else alignment(value, bound)


def _of_call(expr: Any, bound: Bound) -> int:
    name = getattr(expr.op, "name", "").split(".")[-1]
    if name == "if_then_else":
        return min(alignment(value, bound) for value in expr.args[1:])
    return 1


_ALIGNMENTS: dict[str, Callable[[Any, Bound], int]] = {
    "IntImm": _of_constant,
    "Add": _of_least("a", "b"),
    "Sub": _of_least("a", "b"),
    "Mul": _of_product,
    "LShift": _of_shift,
    "BitwiseAnd": _of_mask,
    "Min": _of_least("a", "b"),
    "Max": _of_least("a", "b"),
    "Cast": _of_least("value"),
    "Select": _of_least("true_value", "false_value"),
    "Var": _of_variable,
    "Call": _of_call,
}
