"""Numbers that launches hand on while they overlap: each says itself whether it is there yet.

A launch that waits for another behind a barrier begins on an empty device, and asks for its weights only then. Without
the barrier its weights are on their way while it waits for what the launch before makes. No counter tells it when:
memory that is handed on holds ``NOTHING`` at first, a NaN that no kernel publishes, and whoever needs a number asks
for it until it is another (as NCCL's low-latency protocol does with flags beside the data).

Waiting needs what is waited for to have started. Where a device starts launches in their order, the runtime leaves
barriers out between a kernel that publishes and one that awaits (vulkan_runtime/order.h); elsewhere they stand, and
every number is there when it is first asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.flat import each
from dspark_compiler.schedules.simt.stored import copy
from dspark_compiler.schedules.simt.threads import registers
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

NOTHING = 0xFFFFFFFF
_NAN = 0x7FFFFFFF  # is published in its place
# Seconds of asking, after which a kernel goes on with NaNs, and the runtime is told: no device hangs on what a kernel
# has failed to publish.
_MOST_TIMES = 1 << 22
_PIECES = 4  # of memory that a thread unsets
_WORDS = 4  # of a piece, where there are as many

# Of a kernel, numbers of arguments: what it publishes, what it awaits, what its work groups count in or tell each other
# by (``NOTHING`` before), and what they exchange, with anything in it.
PUBLISHES, AWAITS, COUNTS, EXCHANGES = (f"dspark.{name}" for name in ("publishes", "awaits", "counts", "exchanges"))
# Of the runtime: threads of a work group -> whether launches overlap, and the device takes so many.
_OVERLAPS = "dspark.vulkan.overlaps"
UNSETS = "dspark.unsets"  # of a kernel that unsets its argument, its name: equal kernels would be made one


def hands_on(function: tvm.tirx.PrimFunc, args: Sequence[Arg], **names: Sequence[str]) -> tvm.tirx.PrimFunc:
    """``function`` told of arguments: names of ``args`` by ``publishes``, ``awaits``, ``counts``, ``exchanges``."""
    numbers = {arg.name: i for i, arg in enumerate(args)}
    for attribute in (PUBLISHES, AWAITS, COUNTS, EXCHANGES):
        found = [numbers[name] for name in names.get(attribute.removeprefix("dspark."), ()) if name in numbers]
        function = function.with_attr(attribute, found)
    return function


def overlaps(threads: int) -> Expr:
    """Host code's question at a launch: whether it runs beside those whose results it awaits."""
    return T.call_packed(_OVERLAPS, T.int32(threads)) != 0


def starts_in_order() -> Expr:
    """In a kernel: whether launches overlap; work groups have started in their order then, x fastest."""
    return T.call_extern("int32", "dspark_overlaps") != 0


def publish(buffer: Buffer, index: Sequence[Expr], value: Expr) -> None:
    """Stores a float32 where somebody may be asking for it."""
    T.evaluate(T.call_extern("void", "dspark_publish", T.address_of(buffer[tuple(index)]), told(value)))


def told(value: Expr) -> Expr:
    """A float32 as it is handed on: any but ``NOTHING``."""
    bits = registers(1, "uint32")
    T.buffer_store(bits, T.reinterpret("uint32", value), [0])
    return T.reinterpret("float32", T.Select(bits[0] == T.uint32(NOTHING), T.uint32(_NAN), bits[0]))


class Question(Protocol):
    """What is asked for until it is there."""

    def emit(self) -> None:
        """Asks once."""

    def found(self) -> list[Expr]:
        """What has come of it."""


@dataclass(frozen=True)
class Ask:
    """For ``count`` neighbouring float32 (1, 2 or 4) from source[index] on, to be put to target[at] and behind it.

    The index of the first is a multiple of ``count``.
    """

    target: Buffer
    at: tuple[int, ...]
    source: Buffer
    index: Sequence[Expr]
    count: int = 1

    def load(self) -> None:
        """What is there, where it need not be awaited."""
        copy(self.target, self.at, self.source, tuple(self.index), self.count)

    def found(self) -> list[Expr]:
        """What the target has."""
        *outer, first = self.at
        return [self.target[(*outer, first + i)] for i in range(self.count)]

    def emit(self) -> None:
        """Asks once."""
        (*outer, first), (*place, at) = self.index, self.at
        if self.count == 1:
            found = T.call_extern("float32", "dspark_await", T.address_of(self.source[tuple(self.index)]))
            T.buffer_store(self.target, found, list(self.at))
            return
        address = T.address_of(self.source[(*outer, T.ramp(first, 1, self.count))])
        found = T.call_extern(f"float32x{self.count}", "dspark_await", address)
        T.buffer_store(self.target, found, [*place, T.ramp(at, 1, self.count)])


def await_numbers(asks: Sequence[Question]) -> None:
    """Goes on as soon as all are there, which are asked for at once, and again while one is missing."""
    times, missing = registers(1, "int32"), registers(1, "int32")
    T.buffer_store(times, T.int32(_MOST_TIMES), [0])
    with T.While(times[0] > 0):
        for ask in asks:
            ask.emit()
        T.buffer_store(missing, T.int32(0), [0])
        for number in (number for ask in asks for number in ask.found()):
            is_nothing = T.reinterpret("uint32", number) == T.uint32(NOTHING)
            T.buffer_store(missing, T.Select(is_nothing, T.int32(1), missing[0]), [0])
        T.buffer_store(times, T.Select(missing[0] == 0, T.int32(0), times[0] - 1), [0])
    with when(missing[0] == 1):
        T.evaluate(T.call_extern("void", "dspark_give_up"))


def keep_own(buffer: Buffer) -> None:
    """Says that what the launch has in this memory is for no other: it is among ``exchanges`` though nothing is."""
    T.evaluate(T.call_extern("void", "dspark_own", T.address_of(buffer[(T.int32(0),) * len(buffer.shape)])))


def unset(name: str, count: int) -> tvm.tirx.PrimFunc:
    """Kernel for y = ``NOTHING``, y uint32 [count]: memory before it is handed on, counters before work groups meet."""
    words = _WORDS if count % _WORDS == 0 else 1
    pieces = count // words
    quarter = -(-pieces // _PIECES)

    def body(y: Buffer) -> None:
        def clear(i: Expr) -> None:
            for turn in range(_PIECES):  # neighbours' pieces lie beside each other, a thread's apart
                piece = T.Bind(turn * quarter + i)
                place, value = (piece, NOTHING) if words == 1 else (T.ramp(piece * words, 1, words), NOTHING)
                nothing = T.uint32(value) if words == 1 else T.Broadcast(T.uint32(value), words)
                with when(piece < pieces):
                    T.evaluate(T.call_extern("void", "dspark_unset", T.address_of(y[place]), nothing))

        each((quarter,), clear)

    return kernel(name, [Arg("y", (count,), "uint32")], body, block=True).with_attr(UNSETS, name)
