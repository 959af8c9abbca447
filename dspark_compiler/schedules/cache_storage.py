"""Types a cache keeps keys and values in, and the vectorisable arithmetic between them and float32.

A quantized row has one float32 scale, its largest magnitude over the type's largest value: element = stored * scale.
Keys are not multiplied out: a key's scale factors out of its dot product, a value's joins the weight of its slot.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.tir import Buffer, Expr, fill, local, vector, widest_vector


@dataclass(frozen=True)
class Storage(ABC):
    """A type of stored elements: ``dtype`` is what kernels see, ``largest`` what a row's largest element becomes."""

    dtype: ClassVar[str]
    largest: ClassVar[float | None] = None  # None: stored as they are, without a scale

    @property
    def scaled(self) -> bool:
        """Whether each row has a scale."""
        return self.largest is not None

    @abstractmethod
    def load(self, stored: Expr) -> Expr:
        """A stored element as float32, without its row's scale."""

    @abstractmethod
    def encode(self, ratio: Expr) -> Expr:
        """A float32 element over its row's scale as it is stored, rounded to nearest, ties to even."""


class Float32(Storage):
    """Elements as they come."""

    dtype = "float32"

    def load(self, stored: Expr) -> Expr:
        """See Storage.load."""
        return stored

    def encode(self, ratio: Expr) -> Expr:
        """See Storage.encode."""
        return ratio


class Int8(Storage):
    """Integers from -127 to 127."""

    dtype = "int8"
    largest = 127.0

    def load(self, stored: Expr) -> Expr:
        """See Storage.load."""
        return T.cast(stored, "float32")

    def encode(self, ratio: Expr) -> Expr:
        """See Storage.encode."""
        return T.cast(T.nearbyint(_clamped(ratio, self.largest)), "int8")


class E4M3(Storage):
    """Eight-bit floats of 4 exponent and 3 mantissa bits, bias 7, up to 448 (Micikevicius et al., arXiv 2209.05433).

    Their bits travel as uint8. Put where float32 has exponent and mantissa they are the value times 2^-120; that is a
    float32 subnormal only for codes below 2^-6, under 1/28000 of a row's largest element and so too rare to be slow.
    """

    dtype = "uint8"
    largest = 448.0

    def load(self, stored: Expr) -> Expr:
        """See Storage.load."""
        extended = T.cast(T.reinterpret("int8", stored), "int32")  # bits 7 to 31 are the sign
        bits = (extended << T.int32(20)) & T.int32(-0x78100000)
        return T.reinterpret("float32", bits) * T.float32(2.0**120)

    def encode(self, ratio: Expr) -> Expr:
        """See Storage.encode."""
        bits = T.reinterpret("uint32", _clamped(ratio, self.largest))
        magnitude = bits & T.uint32(0x7FFFFFFF)
        odd = (magnitude >> T.uint32(20)) & T.uint32(1)
        normal = ((magnitude + T.uint32(0x7FFFF) + odd) >> T.uint32(20)) - T.uint32(120 << 3)
        # Steps of 2^-9 below 2^-6; eight of them carry into the first normal number.
        steps = T.nearbyint(T.reinterpret("float32", magnitude) * T.float32(2.0**9))
        tiny = T.cast(T.cast(T.min(steps, T.float32(8.0)), "int32"), "uint32")
        value = T.Select(magnitude < T.uint32(121 << 23), tiny, normal)
        return T.cast(value | ((bits >> T.uint32(24)) & T.uint32(0x80)), "uint8")


FLOAT32, INT8, E4M3FN = Float32(), Int8(), E4M3()

# By the type a state has in a program, as torch spells it.
STORAGES: dict[str, Storage] = {"float32": FLOAT32, "int8": INT8, "float8_e4m3fn": E4M3FN}


def quantize(storage: Storage, row: Buffer, at: tuple[Expr, ...], size: int, lanes: int) -> tuple[Buffer, Expr]:
    """The row row[*at, :size] as ``storage`` keeps it: a local buffer of its elements, and its scale."""
    assert storage.largest is not None
    lanes = widest_vector(size, lanes)
    stored, peaks, peak = local(size, storage.dtype), local(lanes), local(1)
    fill(peaks, 0, lanes, lanes, 0.0)
    with T.serial(0, size // lanes) as chunk, vector(lanes) as lane:
        T.buffer_store(peaks, T.max(peaks[lane], T.abs(row[(*at, chunk * lanes + lane)])), [lane])
    T.buffer_store(peak, T.float32(0.0), [0])
    with T.serial(0, lanes) as lane:
        T.buffer_store(peak, T.max(peak[0], peaks[lane]), [0])
    scale = T.Bind(peak[0] / T.float32(storage.largest))
    divisor = T.Bind(T.Select(scale == T.float32(0.0), T.float32(1.0), scale))
    with T.serial(0, size // lanes) as chunk, vector(lanes) as lane:
        at_lane = chunk * lanes + lane
        T.buffer_store(stored, storage.encode(row[(*at, at_lane)] / divisor), [at_lane])
    return stored, scale


def _clamped(value: Expr, limit: float) -> Expr:
    """Rounding of the scale may leave the largest element a little above ``limit``."""
    return T.max(T.min(value, T.float32(limit)), T.float32(-limit))
