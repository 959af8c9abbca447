"""A row in the registers of a cluster, and numbers made of all of it.

Numbers are integers, so that the order in which parts are put together does not matter.
"""

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.loops import unrolled
from dspark_compiler.schedules.cuda.meeting import Meeting
from dspark_compiler.schedules.cuda.row_cluster import RowCluster
from dspark_compiler.schedules.cuda.threads import address, device, registers, run
from dspark_compiler.schedules.cuda.warps import Combine, reduce_int32
from dspark_compiler.schedules.tir import Buffer, Expr, when

FIXED_POINT = 40  # fractional bits of sums: 2^18 weights, none above 1, add up within 58 bits

_SIGN_CLEAR = 2**31 - 1
_NEVER = 2**31 - 1

# Adding 8 rounds a weight to 2^-20 and leaves the multiple in the last bits; the rest is rounded to 2^-40 likewise.
_ADD_FIXED = """
__device__ __forceinline__ void dspark_add_fixed(int* high, int* low, float weight, bool counts) {
  float cut = weight + 8.0f, rest = weight - (cut - 8.0f);
  if (counts) {
    *high += __float_as_int(cut) - __float_as_int(8.0f);
    *low += __float_as_int(rest + 0x1.8p-17f) - __float_as_int(0x1.8p-17f);
  }
}
"""


def as_float32(total: Expr) -> Expr:
    """A sum in fixed point as a float32."""
    return T.cast(total, "float32") * T.float32(2.0**-FIXED_POINT)


def variable(value: Expr, dtype: str) -> Buffer:
    """A number of a thread's that changes."""
    place = registers(1, dtype)
    T.buffer_store(place, value, [0])
    return place


def ranked(rank: Expr) -> Expr:
    """The float32 whose place in the order of all floats is ``rank``, int32."""
    return T.reinterpret("float32", flipped(rank))


def flipped(bits: Expr) -> Expr:
    """The bits of a float32 as an int32 that orders as the floats do, NaN (sign clear) above all, and back again."""
    # Negative floats order by falling magnitude.
    return T.bitwise_xor(bits, T.bitwise_and(bits >> T.int32(31), T.int32(_SIGN_CLEAR)))


class RowRegisters:
    """Emits what is done to a row: thread t of block c has the elements (c * each + j) * threads + t for all j."""

    def __init__(self, cluster: RowCluster, block: Expr, thread: Expr) -> None:
        self.cluster = cluster
        self._block, self._thread = block, thread
        self.values = registers(cluster.each)
        self._meeting = Meeting(cluster, block, thread)

    def each(self, emit: Callable[[Expr, Expr], None]) -> None:
        """Calls emit with the number of each element among the thread's, and its index in the row."""
        with unrolled(self.cluster.each) as j:
            emit(j, (self._block * self.cluster.each + j) * self.cluster.threads + self._thread)

    def load(self, value: Callable[[Expr], Expr]) -> None:
        """Elements become value(index), those beyond the row minus infinity."""

        def emit(j: Expr, i: Expr) -> None:
            inside = T.if_then_else(i < self.cluster.extent, value(i), T.float32(float("-inf")))
            T.buffer_store(self.values, inside, [j])

        self.each(emit)

    def store(self, put: Callable[[Expr, Expr], None]) -> None:
        """Calls put with value and index of each element of the row."""

        def emit(j: Expr, i: Expr) -> None:
            with when(i < self.cluster.extent):
                put(self.values[j], i)

        self.each(emit)

    def change(self, value: Callable[[Expr, Expr], Expr]) -> None:
        """Elements become value(element, index)."""
        self.each(lambda j, i: T.buffer_store(self.values, value(self.values[j], i), [j]))

    def maximum(self) -> Expr:
        """The highest element."""
        highest = variable(T.float32(float("-inf")), "float32")
        self.each(lambda j, _: T.buffer_store(highest, T.max(highest[0], self.values[j]), [0]))
        rank = flipped(T.reinterpret("int32", highest[0]))
        return T.Bind(ranked(self._reduce("max", rank)))

    def first(self, holds: Callable[[Expr], Expr]) -> Expr:
        """The lowest index of an element for which ``holds``; above all indices if there is none."""
        index = variable(T.int32(_NEVER), "int32")

        def emit(j: Expr, i: Expr) -> None:
            with when(holds(self.values[j])):
                T.buffer_store(index, T.min(index[0], i), [0])

        self.each(emit)
        return self._reduce("min", index[0])

    def count(self, holds: Callable[[Expr, Expr], Expr]) -> Expr:
        """How many elements ``holds``, of an element and its index, is true of."""
        return self._reduce("add", self._count(holds)[0])

    def above(self, bound: Expr) -> tuple[Expr, Expr]:
        """The sum, int64 in units of 2^-FIXED_POINT, and the number of the elements above ``bound``, all in [0, 1]."""
        high, low = variable(T.int32(0), "int32"), variable(T.int32(0), "int32")

        def emit(j: Expr, _: Expr) -> None:
            value = self.values[j]
            run(device("dspark_add_fixed", address(high), address(low), value, value > bound, source=_ADD_FIXED))

        self.each(emit)
        number = self._count(lambda value, _: value > bound)
        # A warp's 2^11 weights may add up to 2^31 of the larger units.
        larger = T.cast(T.reinterpret("uint32", reduce_int32(high[0], "add")), "int64")
        total = larger * T.int64(1 << FIXED_POINT // 2) + T.cast(reduce_int32(low[0], "add"), "int64")
        whole, count = self._meeting.agree(("add_int64", T.Bind(total)), ("add", reduce_int32(number[0], "add")))
        return whole, count

    def _count(self, holds: Callable[[Expr, Expr], Expr]) -> Buffer:
        number = variable(T.int32(0), "int32")

        def emit(j: Expr, i: Expr) -> None:
            one = T.Select(holds(self.values[j], i), T.int32(1), T.int32(0))
            T.buffer_store(number, number[0] + one, [0])

        self.each(emit)
        return number

    def _reduce(self, how: Combine, value: Expr) -> Expr:
        """Sum, maximum or minimum of each thread's int32 ``value``."""
        return self._meeting.agree((how, reduce_int32(value, how)))[0]
