"""Kernels that keep what belongs to tokens beside their keys: queries in a ring, scores in slots, scratch.

States have the type ``dtype``, rows that go there float32 where ``rows_dtype`` does not say otherwise.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.flat import each
from dspark_compiler.schedules.slot_rows import RowShape, used_slots
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, int32, kernel, when


def append_queries(
    name: str, shape: RowShape, *, dtype: str = "float32", rows_dtype: str = "float32"
) -> tvm.tirx.PrimFunc:
    """Row r's first count[r] queries go to places (length[r] + i) % R of ring sequence[r].

    Arguments: ring [B,H,R,D], q [b,H,S,D], sequence, length, count.
    """

    def body(ring: Buffer, q: Buffer, sequence: Buffer, length: Buffer, count: Buffer) -> None:
        fill_ring(shape, ring, q, lambda r: sequence[r], lambda r: length[r], lambda r: count[r])

    control = _control(shape.rows, "sequence", "length", "count")
    return kernel(name, [*_state_and_rows(shape, ("ring", dtype), ("q", rows_dtype)), *control], body)


def commit_queries(name: str, shape: RowShape, *, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """Each sequence's first accepted[r] rows of scratch go to its ring; as append_queries.

    Arguments: ring [B,H,R,D], scratch [B,H,N,D], both of ``dtype``, length, accepted.
    """

    def body(ring: Buffer, scratch: Buffer, length: Buffer, accepted: Buffer) -> None:
        fill_ring(shape, ring, scratch, lambda r: r, lambda r: length[r], lambda r: accepted[r])

    control = _control(shape.batch, "length", "accepted")
    return kernel(name, [*_state_and_rows(shape, ("ring", dtype), ("scratch", dtype)), *control], body)


def append_slot_scores(name: str, shape: RowShape) -> tvm.tirx.PrimFunc:
    """Row r's first count[r] scores go to the slots after the live ones of sequence[r]; what does not fit is dropped.

    Arguments: slot_score [B,G,C], score [b,G,S,1], sequence, length, count, free.
    """

    def body(slot_score: Buffer, score: Buffer, *control: Buffer) -> None:
        sequence, length, count, free = control
        _fill_slots(shape, (slot_score, score), lambda r: sequence[r], (length, count, free))

    control = _control(shape.rows, "sequence", "length", "count", "free")
    return kernel(name, [*_score_and_rows(shape, "score"), *control], body)


def commit_slot_scores(name: str, shape: RowShape) -> tvm.tirx.PrimFunc:
    """Each sequence's first accepted[r] scores go to the slots after its live ones; as append_slot_scores.

    Arguments: slot_score [B,G,C], scratch [B,G,N,1], length, accepted, free.
    """

    def body(slot_score: Buffer, scratch: Buffer, *control: Buffer) -> None:
        _fill_slots(shape, (slot_score, scratch), lambda r: r, control)

    control = _control(shape.batch, "length", "accepted", "free")
    return kernel(name, [*_score_and_rows(shape, "scratch"), *control], body)


def write_scratch(
    name: str, shape: RowShape, *, dtype: str = "float32", rows_dtype: str = "float32"
) -> tvm.tirx.PrimFunc:
    """The rows of a call become the first of scratch.

    Arguments: scratch [B,X,N,Y], rows [B,X,S,Y].
    """

    def body(scratch: Buffer, rows: Buffer) -> None:
        def copy(row: Expr, head: Expr, i: Expr, d: Expr) -> None:
            T.buffer_store(scratch, T.cast(rows[row, head, i, d], dtype), [row, head, i, d])

        each((shape.rows, shape.heads, shape.width, shape.dim), copy)

    return kernel(name, _state_and_rows(shape, ("scratch", dtype), ("rows", rows_dtype)), body)


def fill_ring(shape: RowShape, ring: Buffer, source: Buffer, *control: Expr) -> None:
    """Rows of source go to ring; of more than there are places, only the last.

    ``control`` says of each row of the call its sequence, that one's tokens so far, and how many rows are real.
    """
    sequence, length, count = control

    def copy(row: Expr, head: Expr, i: Expr, d: Expr) -> None:
        real = T.Bind(T.min(int32(count(row)), shape.width))
        with when(T.And(i < real, i >= real - shape.places)):
            place = T.Bind((length(row) + i) % shape.places)
            T.buffer_store(ring, T.cast(source[row, head, i, d], ring.dtype), [sequence(row), head, place, d])

    each((shape.rows, shape.heads, shape.width, shape.dim), copy)


def _fill_slots(shape: RowShape, states: tuple[Buffer, Buffer], sequence: Expr, control: tuple[Buffer, ...]) -> None:
    slot_score, source = states
    length, count, free = control

    def copy(row: Expr, head: Expr, i: Expr) -> None:
        slot = T.Bind(used_slots(length[row], shape.places, free[row]) + i)
        with when(T.And(i < count[row], slot < shape.places)):
            T.buffer_store(slot_score, source[row, head, i, 0], [sequence(row), head, slot])

    each((shape.rows, shape.heads, shape.width), copy)


def _control(rows: int, *names: str) -> list[Arg]:
    return [Arg(name, (rows,), "int32") for name in names]


def _state_and_rows(shape: RowShape, state: tuple[str, str], rows: tuple[str, str]) -> list[Arg]:
    return [
        Arg(state[0], (shape.batch, shape.heads, shape.places, shape.dim), state[1]),
        Arg(rows[0], (shape.rows, shape.heads, shape.width, shape.dim), rows[1]),
    ]


def _score_and_rows(shape: RowShape, rows: str) -> list[Arg]:
    return [
        Arg("slot_score", (shape.batch, shape.heads, shape.places)),
        Arg(rows, (shape.rows, shape.heads, shape.width, 1)),
    ]
