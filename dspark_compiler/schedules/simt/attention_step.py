"""All of attention for few tokens in one launch, from the fused projection to the sum over slots.

Each work group makes what it needs of the projection itself: its queries, and the new keys and values where its slots
have them. The one with the first of those slots writes them to the cache, where nobody else reads them. The last to
arrive of those that share rows adds up the parts.
"""

import math

import tvm
from tvm import DataType
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.simt.attention_block import Block, Place, rows_together
from dspark_compiler.schedules.simt.attention_parts import (
    FEW_TOKENS,
    Meeting,
    Parts,
    chunk_bounds,
    chunk_range,
    chunk_size,
    chunks_of,
    is_in,
    partial_size,
    put_total,
)
from dspark_compiler.schedules.simt.attention_totals import THREADS
from dspark_compiler.schedules.simt.awaited import Ask, hands_on
from dspark_compiler.schedules.simt.cache_rows import (
    NewSlot,
    Problem,
    Tensors,
    cache_args,
    form_args,
    scratch_args,
    span_of,
)
from dspark_compiler.schedules.simt.projected_heads import Task, make_heads
from dspark_compiler.schedules.simt.qkv_prologue import Head, Prologue, projection_args
from dspark_compiler.schedules.simt.stored import copy, copy_line, narrow
from dspark_compiler.schedules.simt.threads import barrier, launch, registers, shared
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when, widest_vector

_VECTOR = 4  # numbers of the projection that a thread reads at once
_MOST_NEW = 8 << 10  # bytes of new keys and values that a work group keeps


def is_step(shape: AttentionShape, dtype: str) -> bool:
    """Whether a call's new tokens are few enough for every work group to keep them."""
    size = shape.width * (shape.head_dim + shape.value_dim) * int(DataType(dtype).bits) // 8
    return shape.width <= FEW_TOKENS and size <= _MOST_NEW


def counters(shape: AttentionShape) -> int:
    """Numbers in "arrived"."""
    problem = Problem(shape, Scoring(1.0), CacheForm(), "float32")
    return shape.rows * shape.kv_heads * -(-problem.rows // rows_together(problem))


@made_once
def step_attention(
    name: str,
    shape: AttentionShape,
    scoring: Scoring,
    work: Prologue,
    dtype: str,
    form: CacheForm,
    *,
    awaits: bool = False,
) -> tuple[tvm.tirx.PrimFunc, tuple[int, ...]]:
    """Kernel from the projection to the output of attention; and its workspace's shape.

    Arguments: those of ``qkv_prologue`` without q, [sinks float32 [H]], arrived uint32 [``counters``], all zero before
    and after (``awaits``: ``NOTHING``), out float32 [b,S,H,Dv], workspace uint32 (anything in it).
    ``awaits``: the projection may be yet to come, and "out" is awaited (awaited.py).
    """
    problem = Problem(shape, scoring, form, dtype, awaits)
    workspace = (partial_size(problem),)
    control = ("length",) if shape.scratch else ("sequence", "length", "count")
    args = [
        *projection_args(shape, work),
        *cache_args(shape, dtype),
        *scratch_args(shape, dtype),
        *(Arg(each, (shape.rows,), "int32") for each in control),
        *form_args(shape, form, shape.rows),
        *([Arg("sinks", (shape.heads,))] if scoring.sinks else []),
        Arg("arrived", (counters(shape),), "uint32"),
        Arg("out", (shape.rows, shape.width, shape.heads, shape.value_dim)),
        Arg("workspace", workspace, "uint32"),
    ]

    def body(*buffers: Buffer) -> None:
        _emit(problem, work, Tensors(dict(zip((arg.name for arg in args), buffers, strict=True))))

    function = kernel(name, args, body)
    if awaits:
        roles = {"publishes": ["out"], "awaits": ["x"], "counts": ["arrived"], "exchanges": ["workspace"]}
        function = hands_on(function, args, **roles)
    return function, workspace


def _emit(problem: Problem, work: Prologue, tensors: Tensors) -> None:
    shape, count, chunks = problem.shape, rows_together(problem), chunks_of(problem)
    blocks = -(-problem.rows // count)
    with launch((chunks, shape.kv_heads * blocks, shape.rows), THREADS) as (chunk, number, row, thread):
        span = span_of(problem, tensors, row)
        head, first = T.Bind(number // blocks), T.Bind(number % blocks * count)
        place = Place(problem, span, row, head, first, count, thread)
        parts = chunk_range(place)
        new, meeting = _Projected(place, work, tensors), Meeting()
        block = Block(place, tensors, new)
        with when(is_in(chunk, parts)):
            bounds, size = chunk_bounds(place, chunk), chunk_size(problem)
            block.ask(*bounds)
            has_new = T.Bind((chunk + 1) * size > span.used)
            new.prepare(has_new, T.Bind(T.And(T.And(has_new, chunk * size <= span.used), first == 0)))
            block.begin()
            block.take(*bounds)
            totals = block.put_together()
            others = T.Bind(parts[1] - parts[0] - 1)
            with T.If(others == 0):
                with T.Then():
                    put_total(place, tensors, totals)
                with T.Else():
                    shares = Parts(problem, tensors, at_once=True)
                    shares.put(place, chunk, totals)
                    with when(meeting.is_last(place, tensors, blocks, others)):
                        shares.write_out(place, *parts)


class _Projected:
    """See Rows: queries, new keys and values out of the projection, in shared memory; the others live."""

    keeps_new = True

    def __init__(self, place: Place, work: Prologue, tensors: Tensors) -> None:
        self._place, self._work, self._tensors = place, work, tensors
        shape, dtype = place.problem.shape, place.problem.dtype
        self._q = shared((place.count, shape.head_dim))
        self._new = {
            "k": shared((shape.width, shape.head_dim), dtype),
            "v": shared((shape.width, shape.value_dim), dtype),
        }

    def prepare(self, has_new: Expr, writes: Expr) -> None:
        """Brings the work group's queries and, where its slots may be new, new keys and values; one ``writes`` them."""
        place, dtype = self._place, self._place.problem.dtype
        values = _NewValues(place, self._tensors)

        def store(task: Task, head: Head) -> None:
            with when(task.is_query):
                head.for_lines(lambda d, line: head.copy_to(self._q, (task.task, d), line))
            with when(T.And(has_new, task.is_key)):
                keys, slot = head.narrowed(dtype), NewSlot(place.problem, self._tensors, place.row, task.token)
                head.for_lines(lambda d, line: copy_line(self._new["k"], (task.token, d), keys, line))
                with when(T.And(writes, slot.fits)):
                    head.for_lines(lambda d, line: slot.copy("k", place.head, d, keys, line))

        make_heads(place, self._work, self._tensors, store, values.asks)
        with when(has_new):
            values.store(self._new["v"], writes)
        barrier()

    def query(self, i: int, element: Expr) -> Expr:
        """See Rows."""
        return self._q[i, element]

    def fetch(self, name: str, target: Buffer, at: tuple[int, int], slot: Expr, element: Expr, count: int) -> None:
        """See Rows."""
        place, span = self._place, self._place.span
        live = self._tensors[f"{name}_cache"]
        stored = T.max(T.min(slot, span.used - 1), 0)  # what is read of new slots is replaced
        copy(target, at, live, (span.sequence, place.head, stored, element), count)

    def fetch_new(self, name: str, target: Buffer, at: tuple[int, int], slot: Expr, element: Expr, count: int) -> None:
        """See Rows."""
        used = self._place.span.used
        with when(slot >= used):
            copy(target, at, self._new[name], (slot - used, element), count)

    def fetch_scale(self, name: str, target: Buffer, at: int, slot: Expr) -> None:
        """See Rows; caches that have scales are written by a launch of their own."""
        raise AssertionError("a step reads no quantized cache")


class _NewValues:
    """New values of the work group's head, some elements in a row a thread."""

    def __init__(self, place: Place, tensors: Tensors) -> None:
        self._place, self._tensors, shape = place, tensors, place.problem.shape
        self._each = widest_vector(math.gcd(shape.head_dim, shape.value_dim), _VECTOR)
        self._pieces = shape.width * shape.value_dim // self._each
        self._turns = -(-self._pieces // THREADS)
        self._found = registers((self._turns, self._each))
        start = (shape.heads + shape.kv_heads) * shape.head_dim + place.head * shape.value_dim
        self.asks = []
        for turn in range(self._turns):
            token, d = self._element(T.min(self._piece(turn), self._pieces - 1))
            index = (T.Bind(place.row * shape.width + token), T.Bind(start + d))
            self.asks.append(Ask(self._found, (turn, 0), tensors["x"], index, self._each))

    def store(self, target: Buffer, writes: Expr) -> None:
        """target[token, element], and where ``writes`` in the cache."""
        place, dtype = self._place, self._place.problem.dtype
        stored = registers((self._turns, self._each), dtype)
        for turn in range(self._turns):
            piece = T.Bind(self._piece(turn))
            with when(piece < self._pieces):
                token, d = self._element(piece)
                for e in range(self._each):
                    T.buffer_store(stored, narrow(self._found[turn, e], dtype), [turn, e])
                copy_line(target, (token, d), stored, turn)
                slot = NewSlot(place.problem, self._tensors, place.row, token)
                with when(T.And(writes, slot.fits)):
                    slot.copy("v", place.head, d, stored, turn)
                    slot.store_position(place.head, d == 0)

    def _piece(self, turn: int) -> Expr:
        return turn * THREADS + self._place.thread

    def _element(self, piece: Expr) -> tuple[Expr, Expr]:
        """Token and first element of a piece."""
        each = self._place.problem.shape.value_dim // self._each
        return T.Bind(piece // each), T.Bind(piece % each * self._each)
