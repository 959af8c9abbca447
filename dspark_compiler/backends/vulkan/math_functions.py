"""Functions that GLSL.std.450 lacks or computes too roughly: Vulkan allows a sine to be 2^-11 off, and pow no sign.

All compute in float32; 16-bit numbers are widened on the way in and narrowed on the way out.
"""

import math
from collections.abc import Callable, Sequence

from dspark_compiler.backends.vulkan.arithmetic import Arithmetic
from dspark_compiler.backends.vulkan.spirv.numbers import Glsl, Op
from dspark_compiler.backends.vulkan.spirv.types import BOOL, FLOAT32, INT32
from dspark_compiler.backends.vulkan.values import Value

Function = Callable[..., Value]  # (arithmetic, *operands)

# pi/2 in three pieces whose products with small integers are exact (Cody and Waite).
_HALF_PI = (1.5703125, 4.837512969970703125e-4, 7.54978995489188216e-8)
# Minimax polynomials on [-pi/4, pi/4]: (sin x - x) / x^3 and (cos x - 1 + x^2/2) / x^4, in x^2, highest power first.
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
# erf x = x P(x^2) / Q(x^2) on [-4, 4], where float32 has reached 1.
_ERF_P = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def glsl(number: Glsl) -> Function:
    """The instruction of GLSL.std.450 as a function."""
    return lambda do, *operands: do.glsl(number, *operands)


def sine(do: Arithmetic, x: Value) -> Value:
    """The sine, to about 1e-7 for |x| up to 1e5."""
    return _circular(do, x, 0)


def cosine(do: Arithmetic, x: Value) -> Value:
    """The cosine, likewise."""
    return _circular(do, x, 1)


def tangent(do: Arithmetic, x: Value) -> Value:
    """The tangent, likewise."""
    return do.binary("Div", sine(do, x), cosine(do, x))


def arc_sine(do: Arithmetic, x: Value) -> Value:
    """The arc sine, by atan2; the instruction may be 2^-11 off."""
    return do.glsl(Glsl.ATAN2, x, _other_side(do, x))


def arc_cosine(do: Arithmetic, x: Value) -> Value:
    """The arc cosine, likewise."""
    return do.glsl(Glsl.ATAN2, _other_side(do, x), x)


def error_function(do: Arithmetic, x: Value) -> Value:
    """The error function, a rational function."""
    low, high = _number(do, -4.0, x), _number(do, 4.0, x)
    x = do.binary("Max", do.binary("Min", x, high), low)
    square = do.binary("Mul", x, x)
    top = do.binary("Mul", x, _polynomial(do, square, _ERF_P))
    return do.binary("Div", top, _polynomial(do, square, _ERF_Q))


def power(do: Arithmetic, x: Value, y: Value) -> Value:
    """Power x ** y for any sign of x; negative x with a fractional y gives what |x| does."""
    size = do.glsl(Glsl.POW, do.glsl(Glsl.F_ABS, x), y)
    half = do.binary("Mul", y, _number(do, 0.5, y))
    odd = do.binary("NE", half, do.glsl(Glsl.FLOOR, half))
    negative = do.binary("LT", x, _number(do, 0.0, x))
    signed = do.select(do.binary("BitwiseAnd", odd, negative), do.negate(size), size)
    return do.select(do.binary("EQ", y, _number(do, 0.0, y)), _number(do, 1.0, y), signed)


def logistic(do: Arithmetic, x: Value) -> Value:
    """1 / (1 + exp(-x))."""
    one = _number(do, 1.0, x)
    return do.binary("Div", one, do.binary("Add", one, do.glsl(Glsl.EXP, do.negate(x))))


def log10(do: Arithmetic, x: Value) -> Value:
    """Logarithm to base 10."""
    return do.binary("Mul", do.glsl(Glsl.LOG2, x), _number(do, math.log10(2), x))


def log1p(do: Arithmetic, x: Value) -> Value:
    """log(1 + x); the rounding of the sum is taken back where x is small."""
    one = _number(do, 1.0, x)
    total = do.binary("Add", one, x)
    rest = do.binary("Sub", x, do.binary("Sub", total, one))
    return do.binary("Add", do.glsl(Glsl.LOG, total), do.binary("Div", rest, total))


def exp10(do: Arithmetic, x: Value) -> Value:
    """10 ** x."""
    return do.glsl(Glsl.EXP2, do.binary("Mul", x, _number(do, math.log2(10), x)))


def round_away(do: Arithmetic, x: Value) -> Value:
    """The nearest integer, halves away from zero."""
    size = do.glsl(Glsl.FLOOR, do.binary("Add", do.glsl(Glsl.F_ABS, x), _number(do, 0.5, x)))
    return copysign(do, size, x)


def copysign(do: Arithmetic, size: Value, sign: Value) -> Value:
    """|size| with the sign of ``sign``."""
    bits = do.bitcast(sign, INT32, sign.lanes)
    negative = do.binary("LT", bits, do.constant(INT32, 0, sign.lanes))
    size = do.glsl(Glsl.F_ABS, size)
    return do.select(negative, do.negate(size), size)


def hypotenuse(do: Arithmetic, x: Value, y: Value) -> Value:
    """sqrt(x x + y y)."""
    return do.glsl(Glsl.SQRT, do.binary("Add", do.binary("Mul", x, x), do.binary("Mul", y, y)))


def is_nan(do: Arithmetic, x: Value) -> Value:
    """Whether a number is none, by its bits: drivers that assume there are none say false."""
    return do.binary("GT", _magnitude(do, x), do.constant(INT32, 0x7F800000, x.lanes))


def is_infinite(do: Arithmetic, x: Value) -> Value:
    """Whether a number is infinite."""
    return do.binary("EQ", _magnitude(do, x), do.constant(INT32, 0x7F800000, x.lanes))


def is_finite(do: Arithmetic, x: Value) -> Value:
    """Whether a number is finite."""
    return do.binary("LT", _magnitude(do, x), do.constant(INT32, 0x7F800000, x.lanes))


def _other_side(do: Arithmetic, x: Value) -> Value:
    """sqrt(1 - x x)."""
    one = _number(do, 1.0, x)
    return do.glsl(Glsl.SQRT, do.binary("Mul", do.binary("Sub", one, x), do.binary("Add", one, x)))


def _circular(do: Arithmetic, x: Value, quarters: int) -> Value:
    """sin(x + quarters pi / 2): by quadrants of pi / 2."""
    turns = do.glsl(Glsl.ROUND_EVEN, do.binary("Mul", x, _number(do, 2 / math.pi, x)))
    for piece in _HALF_PI:
        x = do.glsl(Glsl.FMA, turns, _number(do, -piece, x), x)
    square = do.binary("Mul", x, x)
    cube = do.binary("Mul", square, x)
    sin = do.glsl(Glsl.FMA, cube, _polynomial(do, square, _SIN), x)
    first = do.glsl(Glsl.FMA, square, _number(do, -0.5, x), _number(do, 1.0, x))
    cos = do.glsl(Glsl.FMA, do.binary("Mul", square, square), _polynomial(do, square, _COS), first)
    quadrant = do.map(Op.CONVERT_F_TO_S, INT32, turns)
    quadrant = do.binary("Add", quadrant, do.constant(INT32, quarters, x.lanes))
    result = do.select(_bit(do, quadrant, 1), cos, sin)
    return do.select(_bit(do, quadrant, 2), do.negate(result), result)


def _bit(do: Arithmetic, value: Value, bit: int) -> Value:
    masked = do.binary("BitwiseAnd", value, do.constant(INT32, bit, value.lanes))
    return do.convert(masked, BOOL)


def _magnitude(do: Arithmetic, x: Value) -> Value:
    return do.binary("BitwiseAnd", do.bitcast(x, INT32, x.lanes), do.constant(INT32, 0x7FFFFFFF, x.lanes))


def _polynomial(do: Arithmetic, x: Value, coefficients: Sequence[float]) -> Value:
    """Highest power first."""
    result = _number(do, coefficients[0], x)
    for coefficient in coefficients[1:]:
        result = do.glsl(Glsl.FMA, result, x, _number(do, coefficient, x))
    return result


def _number(do: Arithmetic, value: float, like: Value) -> Value:
    return do.constant(FLOAT32, value, like.lanes)
