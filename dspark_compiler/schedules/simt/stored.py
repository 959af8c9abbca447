"""Types numbers are stored in, and the float32 they are computed in.

Bfloat16 travels as uint16, the upper half of a float32's bits.
"""

from tvm import DataType
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cache_storage import E4M3, Storage
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


def cached(value: Expr, storage: Storage, dtype: str) -> Expr:
    """An element of a cache as float32, without its row's scale."""
    if not storage.scaled:
        return widen(value, dtype)
    return decode_e4m3(T.cast(value, "uint32")) if isinstance(storage, E4M3) else storage.load(value)


def decode_e4m3(code: Expr) -> Expr:
    """The number with the lowest 8 bits of ``code``, by no number below float32's normal ones: devices may drop those.

    Exponents are biased by 7, float32's by 127; the lowest stands for numbers below normal, multiples of 2^-9.
    """
    magnitude, sign = code & T.uint32(0x7F), (code & T.uint32(0x80)) << T.uint32(24)
    small = T.reinterpret("uint32", T.cast(magnitude, "float32") * T.float32(2.0**-9))
    bits = T.Select(magnitude < T.uint32(8), small, (magnitude << T.uint32(20)) + T.uint32(120 << 23))
    return T.reinterpret("float32", bits | sign)


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


def copy(target: Buffer, at: tuple[Expr, ...], source: Buffer, index: tuple[Expr, ...], count: int) -> None:
    """The same without a change of type; ``target`` and ``source`` are of one."""
    *outer, last = index
    *place, first = at
    with T.vectorized(0, count) as lane:
        T.buffer_store(target, source[(*outer, last + lane)], [*place, first + lane])


def copy_words(target: Buffer, at: tuple[Expr, ...], source: Buffer, index: tuple[Expr, ...], count: int) -> None:
    """The words of 32 bits at target[at] and behind it = ``count`` narrower elements of ``source``, which fill them."""
    words, (*outer, first), (*place, word) = count * int(DataType(source.dtype).bits) // 32, index, at
    narrow_ones = source[(*outer, T.ramp(first, 1, count))]
    if words == 1:
        T.buffer_store(target, T.reinterpret("uint32", narrow_ones), [*place, word])
    else:
        T.buffer_store(target, T.reinterpret(f"uint32x{words}", narrow_ones), [*place, T.ramp(word, 1, words)])


def copy_line(target: Buffer, at: tuple[Expr, ...], source: Buffer, line: int) -> None:
    """target[at] and behind it = a line of ``source``, a matrix."""
    copy(target, at, source, (line, T.int32(0)), int(source.shape[-1]))
