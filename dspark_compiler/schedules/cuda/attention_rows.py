"""Which query rows, slots and shared memory a block of an attention kernel works on."""

from contextlib import nullcontext
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.memory import copy_from, load_int, load_pair, store_word
from dspark_compiler.schedules.cuda.threads import address, registers
from dspark_compiler.schedules.gpu import attention_call
from dspark_compiler.schedules.gpu.attention_call import Tensors
from dspark_compiler.schedules.tir import Buffer, Expr, when

PIECE = 16  # bytes a copy moves
ELEMENTS = 8  # 2-byte elements in a piece
_BATCH = 16


@dataclass(frozen=True)
class Problem(attention_call.Problem):
    """An attention call; ``dtype`` is what queries, keys and values are multiplied in."""

    out_dtype: str


def padded(dim: int) -> int:
    """Head size as products take it, in steps of 16."""
    return -(-dim // 16) * 16


def row_bytes(dim: int) -> int:
    """Bytes of a row in shared memory: an odd number of pieces, so that eight rows lie in different banks."""
    return (padded(dim) // ELEMENTS | 1) * PIECE


def as_int(condition: Expr) -> Expr:
    """1 or 0, for device functions."""
    return T.cast(condition, "int32")


@dataclass(frozen=True)
class Span(attention_call.Span):
    """The virtual slots of one sequence."""

    row: Expr  # of the call

    def first_visible(self, problem: Problem, token: Expr) -> Expr:
        """The first slot ``token`` sees; 0 where that takes a look at the positions."""
        if not problem.scoring.window or problem.form.slot_position:
            return T.int32(0)
        return T.max(self.used + token + (1 - problem.scoring.window), 0)


def span_of(problem: Problem, tensors: Tensors, row: Expr) -> Span:
    """The slots of the call's row ``row``; tokens past the cache's end have none."""
    shape, free = problem.shape, tensors.get("free")

    def control(name: str) -> Expr:
        return T.Bind(load_int(address(tensors[name], row)))

    length = control("length")
    used = length if free is None else T.Bind(T.min(length, shape.slots - control("free")))
    if shape.scratch:
        return Span(row, used, length, T.Bind(used + shape.width), row)
    sequence, count = control("sequence"), control("count")
    return Span(sequence, used, length, T.Bind(T.min(used + T.min(count, shape.width), shape.slots)), row)


def widened_row(problem: Problem, widened: Buffer, name: str, place: tuple[Expr, Expr, Expr], column: Expr) -> Expr:
    """Pointer into quantized slots made rows of the compute dtype (attention_widen.py).

    ``widened``, as float32, holds keys [b,G,C+N,D], then values [b,G,C+N,Dv]; ``place`` is row of the call, head and
    virtual slot.
    """
    shape, (row, head, slot) = problem.shape, place
    dim = shape.head_dim if name == "k" else shape.value_dim
    begin = 0 if name == "k" else shape.rows * shape.kv_heads * problem.slots * shape.head_dim
    return address(widened, (((row * shape.kv_heads + head) * problem.slots + slot) * dim + column + begin) // 2)


class SlotRows:
    """Copies rows of keys or values of one head into shared memory."""

    def __init__(self, problem: Problem, tensors: Tensors, span: Span, head: Expr) -> None:
        self._problem, self._tensors, self._span, self._head = problem, tensors, span, head

    def copy(self, name: str, target: Buffer, at: Expr, first: Expr, count: int, worker: Expr, workers: int) -> None:
        """Starts copying slots first..first+count of ``name``, "k" or "v", to target[at:]; zeros past the end.

        The work is shared by ``workers`` threads, of which this is number ``worker``.
        """
        shape = self._problem.shape
        dim = shape.head_dim if name == "k" else shape.value_dim
        pieces, stride = dim // ELEMENTS, row_bytes(dim)
        for start in range(0, count * pieces, workers):
            unit = worker + start
            number, column = T.Bind(unit // pieces), T.Bind(unit % pieces)
            slot = T.Bind(first + number)
            to = address(target, at + number * stride + column * PIECE)
            with when(unit < count * pieces) if start + workers > count * pieces else nullcontext():
                if "widened" in self._tensors.of:
                    live = self._widened(name, slot, column * ELEMENTS)
                    copy_from(PIECE, to, live, live, T.int32(1), as_int(slot < self._span.end))
                else:
                    copy_from(PIECE, to, *self.place((f"{name}_cache", f"{name}_scratch"), slot, column * ELEMENTS))

    def place(self, names: tuple[str, str], slot: Expr, *column: Expr) -> tuple[Expr, Expr, Expr, Expr]:
        """Where a slot's numbers lie: pointers into the tensors of live slots and of scratch, which, and if there are.

        Where there are none nothing must be read, wherever that points.
        """
        span = self._span
        valid = as_int(slot < span.end)
        live = address(self._tensors[names[0]], span.sequence, self._head, slot, *column)
        if not self._problem.shape.scratch:
            return live, live, T.int32(1), valid
        new = address(self._tensors[names[1]], span.sequence, self._head, slot - span.used, *column)
        return live, new, as_int(slot < span.used), valid

    def _widened(self, name: str, slot: Expr, column: Expr) -> Expr:
        return widened_row(self._problem, self._tensors["widened"], name, (self._span.row, self._head, slot), column)

    def position(self, slot: Expr) -> Expr:
        """Position of the token in ``slot``, where slots keep theirs."""
        shape, span, positions = self._problem.shape, self._span, self._tensors["slot_position"]
        known = load_int(address(positions, span.sequence, self._head, T.max(T.min(slot, shape.slots - 1), 0)))
        return T.Select(slot < span.used, known, span.length + slot - span.used)


class QueryRows:
    """The query rows of a block on their way to shared memory, zeros in padding and for rows there are not.

    Those of the compute dtype are copied, those of float32 go through registers: ``start`` comes before other copies,
    in whose group the copies are, ``finish`` after them.
    """

    def __init__(self, problem: Problem, q: Buffer, place: tuple[Expr, Expr, Expr], count: int) -> None:
        """``place`` is (row of the call, key/value head, first query row), ``count`` the rows from it on."""
        self._problem, self._q, self._place, self._count = problem, q, place, count
        self._copied = q.dtype == problem.dtype

    def start(self, memory: Buffer, at: int, thread: Expr, threads: int) -> None:
        """Starts the copies to memory[at:]."""
        if not self._copied:
            return
        pieces = padded(self._problem.shape.head_dim) // ELEMENTS
        for unit, number, column in self._units(pieces, thread, threads):
            with when(unit < self._count * pieces):
                there, pointer = self._element(number, column * ELEMENTS)
                to = address(memory, at + number * row_bytes(self._problem.shape.head_dim) + column * PIECE)
                copy_from(PIECE, to, pointer, pointer, T.int32(1), as_int(there))

    def finish(self, memory: Buffer, at: int, thread: Expr, threads: int) -> None:
        """Writes what is not copied."""
        if self._copied:
            return
        pairs = padded(self._problem.shape.head_dim) // 2
        units = self._units(pairs, thread, threads)
        for first in range(0, len(units), _BATCH):
            batch = units[first : first + _BATCH]
            words = registers(len(batch), "uint32")  # loads are under way together
            for i, (_, number, pair) in enumerate(batch):
                T.buffer_store(words, T.uint32(0), [i])
                there, pointer = self._element(number, pair * 2)
                with when(there):
                    T.buffer_store(words, load_pair(pointer, self._q.dtype, self._problem.dtype), [i])
            for i, (unit, number, pair) in enumerate(batch):
                with when(unit < self._count * pairs):
                    row = at + number * row_bytes(self._problem.shape.head_dim)
                    store_word(address(memory, row + pair * 4), words[i])

    def _units(self, per_row: int, thread: Expr, threads: int) -> list[tuple[Expr, Expr, Expr]]:
        """(unit, row, part of the row) that a thread has to move, turn by turn."""
        starts = range(0, self._count * per_row, threads)
        return [
            (start + thread, T.Bind((start + thread) // per_row), T.Bind((start + thread) % per_row))
            for start in starts
        ]

    def _element(self, number: Expr, d: Expr) -> tuple[Expr, Expr]:
        """Whether the block's row ``number`` has an element d, and a pointer to it."""
        shape, (row, head, first) = self._problem.shape, self._place
        m = T.Bind(first + number)
        there = T.And(m < self._problem.rows, d < shape.head_dim)
        return there, address(self._q, row, head * shape.group + m % shape.group, m // shape.group, d)
