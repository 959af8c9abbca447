"""Kernels that keep what belongs to tokens beside their keys: queries in a ring, scores in slots, scratch; float32."""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.gpu.flat import Each
from dspark_compiler.schedules.slot_rows import RowShape, score_and_rows, state_and_rows, used_slots
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, int32, kernel, when

OfRow = Callable[[Expr], Expr]  # a number of each row of the call


def append_queries(name: str, shape: RowShape, *, each: Each) -> tvm.tirx.PrimFunc:
    """Row r's first count[r] queries go to places (length[r] + i) % R of ring sequence[r].

    Arguments: ring [B,H,R,D], q [b,H,S,D], sequence, length, count int32 [b].
    """

    def body(ring: Buffer, q: Buffer, sequence: Buffer, length: Buffer, count: Buffer) -> None:
        fill_ring(shape, each, ring, q, lambda r: sequence[r], lambda r: length[r], lambda r: count[r])

    return kernel(
        name, [*state_and_rows(shape, "ring", "q"), *_control(shape.rows, "sequence", "length", "count")], body
    )


def commit_queries(name: str, shape: RowShape, *, each: Each) -> tvm.tirx.PrimFunc:
    """Each sequence's first accepted[r] rows of scratch go to its ring; as append_queries.

    Arguments: ring [B,H,R,D], scratch [B,H,N,D], length, accepted int32 [B].
    """

    def body(ring: Buffer, scratch: Buffer, length: Buffer, accepted: Buffer) -> None:
        fill_ring(shape, each, ring, scratch, lambda r: r, lambda r: length[r], lambda r: accepted[r])

    return kernel(name, [*state_and_rows(shape, "ring", "scratch"), *_control(shape.batch, "length", "accepted")], body)


def append_slot_scores(name: str, shape: RowShape, *, each: Each) -> tvm.tirx.PrimFunc:
    """Row r's first count[r] scores go to the slots after the live ones of sequence[r]; what does not fit is dropped.

    Arguments: slot_score [B,G,C], score [b,G,S,1], sequence, length, count, free int32 [b].
    """

    def body(slot_score: Buffer, score: Buffer, sequence: Buffer, *control: Buffer) -> None:
        _fill_slots(shape, each, (slot_score, score), lambda r: sequence[r], control)

    control = _control(shape.rows, "sequence", "length", "count", "free")
    return kernel(name, [*score_and_rows(shape, "score"), *control], body)


def commit_slot_scores(name: str, shape: RowShape, *, each: Each) -> tvm.tirx.PrimFunc:
    """Each sequence's first accepted[r] scores go to the slots after its live ones; as append_slot_scores.

    Arguments: slot_score [B,G,C], scratch [B,G,N,1], length, accepted, free int32 [B].
    """

    def body(slot_score: Buffer, scratch: Buffer, *control: Buffer) -> None:
        _fill_slots(shape, each, (slot_score, scratch), lambda r: r, control)

    control = _control(shape.batch, "length", "accepted", "free")
    return kernel(name, [*score_and_rows(shape, "scratch"), *control], body)


def write_scratch(name: str, shape: RowShape, *, each: Each) -> tvm.tirx.PrimFunc:
    """The rows of a call become the first of scratch; arguments scratch [B,X,N,Y], rows [B,X,S,Y]."""

    def body(scratch: Buffer, rows: Buffer) -> None:
        def copy(row: Expr, head: Expr, i: Expr, d: Expr) -> None:
            T.buffer_store(scratch, rows[row, head, i, d], [row, head, i, d])

        each((shape.rows, shape.heads, shape.width, shape.dim), copy)

    return kernel(name, state_and_rows(shape, "scratch", "rows"), body)


def fill_ring(
    shape: RowShape, each: Each, ring: Buffer, source: Buffer, sequence: OfRow, length: OfRow, count: OfRow
) -> None:
    """Launches the copy of each row's first ``count`` rows of source to their places; of more than W, the last.

    ``sequence`` is the ring a row's go to, ``length`` that one's tokens so far.
    """

    def copy(row: Expr, head: Expr, i: Expr, d: Expr) -> None:
        real = T.Bind(T.min(int32(count(row)), shape.width))
        with when(T.And(i < real, i >= real - shape.places)):
            place = T.Bind((length(row) + i) % shape.places)
            T.buffer_store(ring, source[row, head, i, d], [sequence(row), head, place, d])

    each((shape.rows, shape.heads, shape.width, shape.dim), copy)


def _fill_slots(
    shape: RowShape, each: Each, states: tuple[Buffer, Buffer], sequence: OfRow, control: tuple[Buffer, ...]
) -> None:
    slot_score, source = states
    length, count, free = control

    def copy(row: Expr, head: Expr, i: Expr) -> None:
        slot = T.Bind(used_slots(length[row], shape.places, free[row]) + i)
        with when(T.And(i < count[row], slot < shape.places)):
            T.buffer_store(slot_score, source[row, head, i, 0], [sequence(row), head, slot])

    each((shape.rows, shape.heads, shape.width), copy)


def _control(rows: int, *names: str) -> list[Arg]:
    return [Arg(name, (rows,), "int32") for name in names]
