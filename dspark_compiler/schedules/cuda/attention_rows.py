"""Which query rows, slots and shared memory a block of an attention kernel works on.

The query rows of a key/value head are numbered token by token: row m is token m // group, query head m % group of the
head's ``group``. Virtual slots count the live slots first and the scratch rows behind them: slot s is live where
s < used, scratch row s - used from there on. A token's own slot is used + its number either way.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.cuda.memory import copy16_from, load_int, load_pair, store_word
from dspark_compiler.schedules.cuda.threads import address, registers
from dspark_compiler.schedules.tir import Buffer, Expr, when

PIECE = 16  # bytes a copy moves
ELEMENTS = 8  # 2-byte elements in a piece


@dataclass(frozen=True)
class Problem:
    """An attention call as kernels see it; ``dtype`` is what queries, keys and values are multiplied in."""

    shape: AttentionShape
    scoring: Scoring
    form: CacheForm
    dtype: str
    out_dtype: str

    @property
    def rows(self) -> int:
        """Query rows of a key/value head."""
        return self.shape.width * self.shape.group

    @property
    def slots(self) -> int:
        """Virtual slots a sequence can have."""
        return self.shape.slots + self.shape.scratch


@dataclass(frozen=True)
class Tensors:
    """Buffers of a call by the operator's names."""

    of: dict[str, Buffer] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Buffer:
        return self.of[name]

    def get(self, name: str) -> Buffer | None:
        """The buffer, None if the call has none of that name."""
        return self.of.get(name)


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
class Span:
    """The virtual slots of one sequence, int32 expressions."""

    sequence: Expr  # row of the cache
    used: Expr  # live slots before the call
    length: Expr  # confirmed tokens
    end: Expr  # one past the last slot that anyone may see

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
        return Span(row, used, length, T.Bind(used + shape.width))
    sequence, count = control("sequence"), control("count")
    return Span(sequence, used, length, T.Bind(T.min(used + T.min(count, shape.width), shape.slots)))


class SlotRows:
    """Copies rows of keys or values of one head into shared memory."""

    def __init__(self, problem: Problem, tensors: Tensors, span: Span, head: Expr) -> None:
        self._problem, self._tensors, self._span, self._head = problem, tensors, span, head

    def copy(self, name: str, target: Buffer, at: Expr, first: Expr, count: int, worker: Expr, workers: int) -> None:
        """Starts copying slots first..first+count of ``name``, "k" or "v", to target[at:]; zeros past the end.

        The work is shared by ``workers`` threads, of which this is number ``worker``.
        """
        shape, span = self._problem.shape, self._span
        dim = shape.head_dim if name == "k" else shape.value_dim
        pieces, stride = dim // ELEMENTS, row_bytes(dim)
        for start in range(0, count * pieces, workers):
            unit = worker + start
            number, column = T.Bind(unit // pieces), T.Bind(unit % pieces)
            slot = T.Bind(first + number)
            to = address(target, at + number * stride + column * PIECE)
            with when(unit < count * pieces) if start + workers > count * pieces else nullcontext():
                live = address(
                    self._tensors[f"{name}_cache"],
                    span.sequence,
                    self._head,
                    T.max(T.min(slot, shape.slots - 1), 0),
                    column * ELEMENTS,
                )
                if not shape.scratch:
                    copy16_from(to, live, live, T.int32(1), as_int(slot < span.end))
                    continue
                row = T.max(T.min(slot - span.used, shape.scratch - 1), 0)
                new = address(self._tensors[f"{name}_scratch"], span.sequence, self._head, row, column * ELEMENTS)
                copy16_from(to, live, new, as_int(slot < span.used), as_int(slot < span.end))

    def position(self, slot: Expr) -> Expr:
        """Position of the token in ``slot``, where slots keep theirs."""
        shape, span, positions = self._problem.shape, self._span, self._tensors["slot_position"]
        known = load_int(address(positions, span.sequence, self._head, T.max(T.min(slot, shape.slots - 1), 0)))
        return T.Select(slot < span.used, known, span.length + slot - span.used)


def load_queries(
    problem: Problem, q: Buffer, target: Buffer, at: int, place: tuple[Expr, Expr, Expr], count: int, thread: Expr, threads: int
) -> None:
    """Writes ``count`` query rows to target[at:] in the compute dtype, zeros in padding and for rows there are not.

    ``place`` is (row of the call, key/value head, first query row). A barrier is due before they are read.
    """
    row, head, first = place
    shape, stride = problem.shape, row_bytes(problem.shape.head_dim)
    pairs = padded(shape.head_dim) // 2
    word = registers(1, "uint32")
    with T.serial(0, -(-count * pairs // threads)) as turn:
        unit = T.Bind(turn * threads + thread)
        number, pair = T.Bind(unit // pairs), T.Bind(unit % pairs)
        m = T.Bind(first + number)
        T.buffer_store(word, T.uint32(0), [0])
        with when(T.And(m < problem.rows, pair * 2 < shape.head_dim)):
            pointer = address(q, row, head * shape.group + m % shape.group, m // shape.group, pair * 2)
            T.buffer_store(word, load_pair(pointer, q.dtype, problem.dtype), [0])
        with when(unit < count * pairs):
            store_word(address(target, at + number * stride + pair * 4), word[0])
