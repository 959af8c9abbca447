"""Types numbers are stored in, and the float32 they are computed in.

Bfloat16 travels as uint16, the upper half of a float32's bits.
"""

from tvm import DataType
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.tir import Buffer, Expr

ACCESS = 16  # bytes that are loaded at once
STORED = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}


def elements_at_once(dtype: str) -> int:
    """Numbers of a stored type in one access."""
    return ACCESS * 8 // int(DataType(dtype).bits)


def widen(value: Expr, dtype: str) -> Expr:
    """A stored number as float32."""
    if dtype == "uint16":
        return T.reinterpret("float32", T.cast(value, "uint32") << T.uint32(16))
    return value if dtype == "float32" else T.cast(value, "float32")


def narrow(value: Expr, dtype: str) -> Expr:
    """A float32 as it is stored, rounded to nearest, ties to even."""
    if dtype == "uint16":
        bits = T.reinterpret("uint32", value)
        odd = (bits >> T.uint32(16)) & T.uint32(1)
        return T.cast((bits + T.uint32(0x7FFF) + odd) >> T.uint32(16), "uint16")
    return value if dtype == "float32" else T.cast(value, dtype)


def load(target: Buffer, at: int, source: Buffer, index: tuple[Expr, ...], count: int) -> None:
    """target[at : at+count] = source[*index[:-1], index[-1] : +count] as float32, in one access where it is aligned."""
    *outer, last = index
    with T.vectorized(0, count) as lane:
        T.buffer_store(target, widen(source[(*outer, last + lane)], source.dtype), [at + lane])


def copy(target: Buffer, at: tuple[int, ...], source: Buffer, index: tuple[Expr, ...], count: int) -> None:
    """The same without a change of type; ``target`` and ``source`` are of one."""
    *outer, last = index
    *place, first = at
    with T.vectorized(0, count) as lane:
        T.buffer_store(target, source[(*outer, last + lane)], [*place, first + lane])
