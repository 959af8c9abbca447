"""Kernels that keep what belongs to confirmed tokens beside their keys: queries in a ring, scores in slots."""

from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, int32, kernel, vector, when, widest_vector


@dataclass(frozen=True)
class RowShape:
    """Sizes of a state [batch, heads, places, dim] and of the rows [rows, heads, width, dim] that go there."""

    batch: int
    heads: int
    places: int
    rows: int
    width: int
    dim: int = 1


def used_slots(length: Expr, slots: int, free: Expr) -> Expr:
    """Live slots of a sequence of ``length`` tokens, of whose ``slots`` ``free`` are free."""
    return T.Bind(T.min(length, slots - free))


def append_queries(name: str, shape: RowShape, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """Row r's first count[r] queries go to places (length[r] + i) % R of ring sequence[r].

    Arguments: ring [B,H,R,D], q [b,H,S,D], sequence, length, count.
    """

    def body(ring: Buffer, q: Buffer, sequence: Buffer, length: Buffer, count: Buffer) -> None:
        with T.serial(0, shape.rows) as row:
            fill_ring(shape, isa, ring, q, (row, sequence[row]), length[row], count[row])

    control = [Arg(n, (shape.rows,), "int32") for n in ("sequence", "length", "count")]
    return kernel(name, [*state_and_rows(shape, "ring", "q"), *control], body)


def commit_queries(name: str, shape: RowShape, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """Each sequence's first accepted[r] rows of scratch go to its ring; as append_queries.

    Arguments: ring [B,H,R,D], scratch [B,H,N,D], length, accepted.
    """

    def body(ring: Buffer, scratch: Buffer, length: Buffer, accepted: Buffer) -> None:
        with T.serial(0, shape.batch) as row:
            fill_ring(shape, isa, ring, scratch, (row, row), length[row], accepted[row])

    control = [Arg(n, (shape.batch,), "int32") for n in ("length", "accepted")]
    return kernel(name, [*state_and_rows(shape, "ring", "scratch"), *control], body)


def append_slot_scores(name: str, shape: RowShape) -> tvm.tirx.PrimFunc:
    """Row r's first count[r] scores go to the slots after the live ones of sequence[r]; what does not fit is dropped.

    Arguments: slot_score [B,G,C], score [b,G,S,1], sequence, length, count, free.
    """

    def body(slot_score: Buffer, score: Buffer, *control: Buffer) -> None:
        sequence, length, count, free = control
        with T.serial(0, shape.rows) as row:
            used = used_slots(length[row], shape.places, free[row])
            _fill_slots(shape, slot_score, score, (row, sequence[row]), used, count[row])

    control = [Arg(n, (shape.rows,), "int32") for n in ("sequence", "length", "count", "free")]
    return kernel(name, [*score_and_rows(shape, "score"), *control], body)


def commit_slot_scores(name: str, shape: RowShape) -> tvm.tirx.PrimFunc:
    """Each sequence's first accepted[r] scores go to the slots after its live ones; as append_slot_scores.

    Arguments: slot_score [B,G,C], scratch [B,G,N,1], length, accepted, free.
    """

    def body(slot_score: Buffer, scratch: Buffer, length: Buffer, accepted: Buffer, free: Buffer) -> None:
        with T.serial(0, shape.batch) as row:
            used = used_slots(length[row], shape.places, free[row])
            _fill_slots(shape, slot_score, scratch, (row, row), used, accepted[row])

    control = [Arg(n, (shape.batch,), "int32") for n in ("length", "accepted", "free")]
    return kernel(name, [*score_and_rows(shape, "scratch"), *control], body)


def write_scratch(name: str, shape: RowShape, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """The rows of a call become the first of scratch.

    Arguments: scratch [B,X,N,Y], rows [B,X,S,Y].
    """

    def body(scratch: Buffer, rows: Buffer) -> None:
        with T.serial(0, shape.rows) as row, T.serial(0, shape.heads) as head, T.serial(0, shape.width) as i:
            copy_row(shape, isa, scratch, (row, head, i), rows, (row, head, i))

    return kernel(name, state_and_rows(shape, "scratch", "rows"), body)


def fill_ring(
    shape: RowShape, isa: VectorIsa, ring: Buffer, source: Buffer, at: tuple[Expr, Expr], start: Expr, count: Expr
) -> None:
    """Rows of source[at[0]] go to ring[at[1]]; of more than there are places, only the last."""
    row, seq = at
    count = T.Bind(T.min(int32(count), shape.width))
    skipped = T.Bind(T.max(count - shape.places, 0))
    with T.serial(0, shape.heads) as head, T.serial(0, count - skipped) as step:
        i = T.Bind(skipped + step)
        copy_row(shape, isa, ring, (seq, head, (start + i) % shape.places), source, (row, head, i))


def copy_row(
    shape: RowShape,
    isa: VectorIsa,
    target: Buffer,
    place: tuple[Expr, Expr, Expr],
    source: Buffer,
    at: tuple[Expr, Expr, Expr],
) -> None:
    """target[place] = source[at], rows of shape.dim elements."""
    lanes = widest_vector(shape.dim, isa.lanes)
    with T.serial(0, shape.dim // lanes) as chunk, vector(lanes) as d:
        T.buffer_store(target, source[*at, chunk * lanes + d], [*place, chunk * lanes + d])


def _fill_slots(
    shape: RowShape, slot_score: Buffer, source: Buffer, at: tuple[Expr, Expr], used: Expr, count: Expr
) -> None:
    row, seq = at
    with T.serial(0, shape.heads) as head, T.serial(0, T.min(count, shape.width)) as i, when(used + i < shape.places):
        T.buffer_store(slot_score, source[row, head, i, 0], [seq, head, used + i])


def state_and_rows(shape: RowShape, state: str, rows: str) -> list[Arg]:
    """The arguments of both shapes, by these names."""
    return [
        Arg(state, (shape.batch, shape.heads, shape.places, shape.dim)),
        Arg(rows, (shape.rows, shape.heads, shape.width, shape.dim)),
    ]


def score_and_rows(shape: RowShape, rows: str) -> list[Arg]:
    """The same of scores, one a slot."""
    return [
        Arg("slot_score", (shape.batch, shape.heads, shape.places)),
        Arg(rows, (shape.rows, shape.heads, shape.width, 1)),
    ]
