"""Arithmetic, comparisons and conversions on values, with TIR's meaning.

A product of floats is rounded, whatever it is added to: a driver that fused the two in one kernel and not in another
would give equal rows different bits. Where one rounding is wanted, kernels ask for it by name (fma).
"""

from typing import NamedTuple

from dspark_compiler.backends.vulkan.spirv.numbers import Decoration, Glsl, Op
from dspark_compiler.backends.vulkan.spirv.types import BOOL, UINT32, Scalar
from dspark_compiler.backends.vulkan.values import Value, Values


class _Row(NamedTuple):
    """An operation's instruction for floats, signed and unsigned integers."""

    floating: Op | Glsl
    signed: Op | Glsl
    unsigned: Op | Glsl


_BINARY = {
    "Add": _Row(Op.F_ADD, Op.I_ADD, Op.I_ADD),
    "Sub": _Row(Op.F_SUB, Op.I_SUB, Op.I_SUB),
    "Mul": _Row(Op.F_MUL, Op.I_MUL, Op.I_MUL),
    "Div": _Row(Op.F_DIV, Op.S_DIV, Op.U_DIV),
    "Min": _Row(Glsl.F_MIN, Glsl.S_MIN, Glsl.U_MIN),
    "Max": _Row(Glsl.F_MAX, Glsl.S_MAX, Glsl.U_MAX),
}
_COMPARE = {
    "EQ": _Row(Op.F_ORD_EQUAL, Op.I_EQUAL, Op.I_EQUAL),
    "NE": _Row(Op.F_UNORD_NOT_EQUAL, Op.I_NOT_EQUAL, Op.I_NOT_EQUAL),
    "LT": _Row(Op.F_ORD_LESS_THAN, Op.S_LESS_THAN, Op.U_LESS_THAN),
    "LE": _Row(Op.F_ORD_LESS_THAN_EQUAL, Op.S_LESS_THAN_EQUAL, Op.U_LESS_THAN_EQUAL),
    "GT": _Row(Op.F_ORD_GREATER_THAN, Op.S_GREATER_THAN, Op.U_GREATER_THAN),
    "GE": _Row(Op.F_ORD_GREATER_THAN_EQUAL, Op.S_GREATER_THAN_EQUAL, Op.U_GREATER_THAN_EQUAL),
}
_BITS = {
    "BitwiseAnd": Op.BITWISE_AND,
    "BitwiseOr": Op.BITWISE_OR,
    "BitwiseXor": Op.BITWISE_XOR,
    "LShift": Op.SHIFT_LEFT_LOGICAL,
}
_BOOL_COMPARE = {"EQ": Op.LOGICAL_EQUAL, "NE": Op.LOGICAL_NOT_EQUAL}
_BOOL_BITS = {
    "BitwiseAnd": Op.LOGICAL_AND,
    "BitwiseOr": Op.LOGICAL_OR,
    "BitwiseXor": Op.LOGICAL_NOT_EQUAL,
}


class Arithmetic(Values):
    """Emits what computes with values."""

    def binary(self, name: str, left: Value, right: Value) -> Value:
        """The operation of a TIR node of that name.

        Raises:
            ValueError: no such operation on these types.
        """
        scalar = left.scalar
        if name in _COMPARE:
            if scalar.is_bool:
                return self.map(_BOOL_COMPARE[name], BOOL, left, right)
            return self._apply(_pick(_COMPARE[name], scalar), BOOL, left, right)
        if scalar.is_bool:
            return self.map(_BOOL_BITS[name], BOOL, left, right)
        if name == "Mod":
            return self._rest(left, right)
        if name in _BINARY:
            made = self._apply(_pick(_BINARY[name], scalar), scalar, left, right)
            for part in made.parts if name == "Mul" and scalar.is_float else ():
                self.module.decorate(part, Decoration.NO_CONTRACTION)
            return made
        if name == "RShift":
            op = Op.SHIFT_RIGHT_ARITHMETIC if scalar.signed else Op.SHIFT_RIGHT_LOGICAL
            return self.map(op, scalar, left, right)
        if name in _BITS and not scalar.is_float:
            return self.map(_BITS[name], scalar, left, right)
        if name in ("FloorDiv", "FloorMod"):
            return self._floor(name, left, right)
        raise ValueError(f"no operation {name} on {scalar}")

    def glsl(self, number: Glsl, *operands: Value, result: Scalar | None = None) -> Value:
        """An instruction of GLSL.std.450, lane by lane."""
        before = (self.module.glsl, number)
        return self.map(Op.EXT_INST, result or operands[0].scalar, *operands, before=before)

    def negate(self, value: Value) -> Value:
        """-value."""
        return self.map(Op.F_NEGATE if value.scalar.is_float else Op.S_NEGATE, value.scalar, value)

    def invert(self, value: Value) -> Value:
        """The opposite of a condition, or all bits of an integer inverted."""
        return self.map(Op.LOGICAL_NOT if value.scalar.is_bool else Op.NOT, value.scalar, value)

    def convert(self, value: Value, to: Scalar) -> Value:
        """A cast as C has it."""
        source = value.scalar
        if source == to:
            return value
        if to.is_bool:
            return self.binary("NE", value, self.constant(source, 0, value.lanes))
        if source.is_bool:
            return self.select(value, self.constant(to, 1, value.lanes), self.constant(to, 0, value.lanes))
        if source.is_float and to.is_float:
            return self.map(Op.F_CONVERT, to, value)
        if source.is_float:
            return self._float_to_integer(value, to)
        if to.is_float:
            return self.map(Op.CONVERT_S_TO_F if source.signed else Op.CONVERT_U_TO_F, to, value)
        if source.bits == to.bits:
            return Value(to, value.lanes, value.parts)
        if to.bits == 64 and source.signed:
            return self._sign_extended(self.convert(value, Scalar("int", 32)), to)
        return self.map(Op.S_CONVERT if source.signed else Op.U_CONVERT, to, value)

    def _float_to_integer(self, value: Value, to: Scalar) -> Value:
        """By way of 32 bits, so that a negative number wraps as it does in C where the integer is narrow."""
        if to.bits >= UINT32.bits:
            return self.map(Op.CONVERT_F_TO_S if to.signed else Op.CONVERT_F_TO_U, to, value)
        return self.convert(self.map(Op.CONVERT_F_TO_S, Scalar("int", 32), value), to)

    def _sign_extended(self, value: Value, to: Scalar) -> Value:
        """int32 to 64 bits as the pair (x, x >> 31): drivers have been seen to compare what SConvert gives wrongly."""
        wide = []
        for lane in self.split(value):
            high = self.binary("RShift", lane, self.constant(lane.scalar, 31))
            pair = self.body.emit(Op.COMPOSITE_CONSTRUCT, self.type(UINT32, 2), lane.id, high.id)
            wide.append(Value(to, 1, (self.body.emit(Op.BITCAST, self.type(to), pair),)))
        return self.join(wide)

    def _floor(self, name: str, left: Value, right: Value) -> Value:
        """Division that rounds down, and its rest, which has the divisor's sign."""
        if left.scalar.is_float or not left.scalar.signed:
            if left.scalar.is_float:
                raise ValueError(f"no operation {name} on {left.scalar}")
            return self.binary("Div" if name == "FloorDiv" else "Mod", left, right)
        quotient, rest = self.binary("Div", left, right), self.binary("Mod", left, right)
        zero = self.constant(left.scalar, 0, left.lanes)
        differ = self.binary("LT", self.binary("BitwiseXor", rest, right), zero)
        down = self.binary("BitwiseAnd", self.binary("NE", rest, zero), differ)
        if name == "FloorDiv":
            return self.binary("Sub", quotient, self.convert(down, left.scalar))
        return self.select(down, self.binary("Add", rest, right), rest)

    def _rest(self, left: Value, right: Value) -> Value:
        """What is left of a division that rounds towards zero; of negative numbers Vulkan does not define OpSRem."""
        if left.scalar.is_float or not left.scalar.signed:
            return self.map(Op.F_REM if left.scalar.is_float else Op.U_MOD, left.scalar, left, right)
        return self.binary("Sub", left, self.binary("Mul", self.binary("Div", left, right), right))

    def _apply(self, op: Op | Glsl, result: Scalar, *operands: Value) -> Value:
        if isinstance(op, Glsl):
            return self.map(Op.EXT_INST, result, *operands, before=(self.module.glsl, op))
        return self.map(op, result, *operands)


def _pick(row: _Row, scalar: Scalar) -> Op | Glsl:
    if scalar.is_float:
        return row.floating
    return row.signed if scalar.signed else row.unsigned
