"""Weights as integers: sums of them are exact, and any device gets the same whatever the order.

A weight from 0 to 1 becomes a multiple of 2^-BITS, what is finer is cut off. Sums have to stay below 2^58.
"""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.group_counts import held
from dspark_compiler.schedules.tir import Expr

SHARE_BITS = 24  # of a float32 between 0 and 1, as random numbers have them


def fixed(weight: Expr, bits: int) -> Expr:
    """A float32 weight as int64; products with powers of two are exact."""
    return T.cast(weight * T.float32(2.0**bits), "int64")


def as_float(total: Expr, bits: int) -> Expr:
    """A sum as float32."""
    return T.cast(total, "float32") * T.float32(2.0**-bits)


def share(part: Expr, total: Expr, *, up: bool = False) -> Expr:
    """The product of a sum with a float32 ``part`` from 0 to 1, rounded down or up; the part to 2^-24."""
    # In two pieces: the product has more than 64 bits.
    numerator, whole = held(fixed(part, SHARE_BITS), "int64"), held(total, "int64")
    high = whole >> T.int64(SHARE_BITS)
    low = T.bitwise_and(whole, T.int64((1 << SHARE_BITS) - 1)) * numerator
    rounding = (1 << SHARE_BITS) - 1 if up else 0
    return held(high * numerator + ((low + T.int64(rounding)) >> T.int64(SHARE_BITS)), "int64")
