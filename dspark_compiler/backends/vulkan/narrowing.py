"""64-bit indices computed in 32 bits.

Relax counts in int64. No buffer here has 2^31 elements, so an index is right when its lower 32 bits are; sums, products
and the like need no more than those of their operands. Divisions, shifts to the right and comparisons do need whole
operands: they are narrowed where the ranges of the variables in them show that 32 bits hold every value.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tvm import tirx

from dspark_compiler.backends.vulkan.indexing import constant_of

Range = tuple[int, int]  # least and greatest value
_INT32: Range = (-(1 << 31), (1 << 31) - 1)
_LOW_BITS_SUFFICE = ("Add", "Sub", "Mul", "LShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
_WHOLE_OPERANDS = ("Div", "Mod", "FloorDiv", "FloorMod", "RShift", "Min", "Max")


class Narrowing:
    """Rewrites int64 expressions of one kernel; ``ranges`` says what values variables take."""

    def __init__(self, ranges: Mapping[Any, Range], bound: Mapping[Any, Any]) -> None:
        self._ranges = ranges
        self._bound = bound

    def index(self, expr: Any) -> Any:
        """An index in 32 bits, or as it is where it is none of 64."""
        return self._low_bits(expr) if str(expr.ty.dtype) == "int64" else expr

    def comparison(self, expr: Any) -> Any:
        """A comparison or a division of int64 whose operands are known to be small, of int32; else as it is."""
        if str(expr.a.ty.dtype) != "int64" or not (self._fits(expr.a) and self._fits(expr.b)):
            return expr
        return type(expr)(self._low_bits(expr.a), self._low_bits(expr.b))

    def range(self, expr: Any) -> Range | None:
        """What values an integer expression can take; None where that cannot be told."""
        name, value = type(expr).__name__, constant_of(expr)
        if value is not None:
            return value, value
        if name == "Var":
            if expr in self._ranges:
                return self._ranges[expr]
            return self.range(self._bound[expr]) if expr in self._bound else None
        if name == "Cast":
            return self.range(expr.value) if str(expr.ty.dtype) in ("int32", "int64") else None
        rule = _RANGES.get(name)
        if rule is None:
            return None
        left, right = self.range(expr.a), self.range(expr.b)
        return None if left is None or right is None else rule(left, right)

    def _fits(self, expr: Any) -> bool:
        """Whether 32 bits hold the value and whatever it is computed from."""
        found = self.range(expr)
        return found is not None and _INT32[0] <= found[0] and found[1] <= _INT32[1]

    def _low_bits(self, expr: Any) -> Any:
        name = type(expr).__name__
        if str(expr.ty.dtype) == "int32":
            return expr
        value = constant_of(expr)
        if value is not None:
            return tirx.IntImm("int32", (value - _INT32[0]) % (1 << 32) + _INT32[0])
        if name in _LOW_BITS_SUFFICE or (name in _WHOLE_OPERANDS and self._fits(expr.a) and self._fits(expr.b)):
            return type(expr)(self._low_bits(expr.a), self._low_bits(expr.b))
        if name == "Cast" and str(expr.value.ty.dtype) in ("int32", "int64"):
            return self._low_bits(expr.value)
        if name == "Ramp":
            return tirx.Ramp(self._low_bits(expr.base), self._low_bits(expr.stride), expr.lanes)
        return expr if expr.ty.dtype.lanes > 1 else tirx.Cast("int32", expr)


def _corners(operation: Callable[[int, int], int]) -> Callable[[Range, Range], Range]:
    def rule(left: Range, right: Range) -> Range:
        values = [operation(a, b) for a in left for b in right]
        return min(values), max(values)

    return rule


def _quotient(left: Range, right: Range) -> Range | None:
    if right[0] <= 0 or left[0] < 0:
        return None
    return left[0] // right[1], left[1] // right[0]


def _rest(left: Range, right: Range) -> Range | None:
    if right[0] <= 0 or left[0] < 0:
        return None
    return 0, min(left[1], right[1] - 1)


def _shifted(left: Range, right: Range) -> Range | None:
    if right[0] != right[1] or not 0 <= right[0] < 64:
        return None
    return left[0] >> right[0], left[1] >> right[0]


def _masked(left: Range, right: Range) -> Range | None:
    if right[0] >= 0:
        return 0, right[1]
    return (0, left[1]) if left[0] >= 0 else None


_RANGES: dict[str, Callable[[Range, Range], Range | None]] = {
    "Add": _corners(lambda a, b: a + b),
    "Sub": _corners(lambda a, b: a - b),
    "Mul": _corners(lambda a, b: a * b),
    "Min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "Max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "Div": _quotient,
    "FloorDiv": _quotient,
    "Mod": _rest,
    "FloorMod": _rest,
    "RShift": _shifted,
    "BitwiseAnd": _masked,
}
