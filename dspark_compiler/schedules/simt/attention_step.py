"""All of attention for few tokens in one launch, from the fused projection to the sum over slots.

Each work group makes what it needs of the projection itself: its queries, and the new keys and values where its slots
have them. The one with the first of those slots writes them to the cache, where nobody else reads them. One of those
that share rows adds up the parts.
"""

from collections.abc import Callable
from functools import partial

import tvm
from tvm import DataType
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.simt.attention_block import Block
from dspark_compiler.schedules.simt.attention_held import Held
from dspark_compiler.schedules.simt.attention_meeting import Meeting, is_awaited
from dspark_compiler.schedules.simt.attention_parts import (
    chunk_bounds,
    chunk_range,
    chunk_size,
    chunks_of,
    is_in,
    partial_size,
    put_total,
)
from dspark_compiler.schedules.simt.attention_place import Place, rows_together
from dspark_compiler.schedules.simt.attention_totals import TEAMS, THREADS
from dspark_compiler.schedules.simt.awaited import hands_on
from dspark_compiler.schedules.simt.cache_rows import (
    Problem,
    Span,
    Tensors,
    cache_args,
    form_args,
    scratch_args,
    span_of,
)
from dspark_compiler.schedules.simt.eighths import EIGHTHS
from dspark_compiler.schedules.simt.projected_rows import ProjectedRows
from dspark_compiler.schedules.simt.qkv_prologue import Prologue, projection_args
from dspark_compiler.schedules.simt.threads import launch
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_MOST_NEW = 8 << 10  # bytes of new keys and values that a work group keeps


def is_step(shape: AttentionShape, dtype: str) -> bool:
    """Whether a call's new tokens are few enough for every work group to keep them, and a team to have one at most."""
    size = shape.width * (shape.head_dim + shape.value_dim) * int(DataType(dtype).bits) // 8
    return shape.width <= TEAMS and size <= _MOST_NEW


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
    eighths: bool = False,
) -> tuple[tvm.tirx.PrimFunc, tuple[int, ...]]:
    """Kernel from the projection to the output of attention; and its workspace's shape.

    Arguments: those of ``qkv_prologue`` without q, [sinks float32 [H]], arrived uint32 [``counters``], all zero before
    and after (``awaits``: ``NOTHING``), out float32 [b,S,H,Dv], workspace uint32 (anything in it;
    ``awaits``: ``NOTHING``). ``awaits``: the projection may be yet to come, and "out" is awaited (awaited.py), in
    ``eighths`` (eighths.py) if so.
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
        Arg("out", (shape.rows, shape.width, shape.heads, shape.value_dim), EIGHTHS if eighths else "float32"),
        Arg("workspace", workspace, "uint32"),
    ]

    def body(*buffers: Buffer) -> None:
        tensors = Tensors(dict(zip((arg.name for arg in args), buffers, strict=True)))
        emit_step(problem, tensors, partial(span_of, problem, tensors), lambda place: _CacheRows(place, work, tensors))

    function = kernel(name, args, body)
    if awaits:
        function = hands_on(function, args, **roles_of(problem))
    return function, workspace


def roles_of(problem: Problem) -> dict[str, list[str]]:
    """What arguments are for, where launches overlap (``hands_on``)."""
    workspace = {"counts": ["arrived", "workspace"]} if is_awaited(problem) else {"exchanges": ["workspace"]}
    return {"publishes": ["out"], "awaits": ["x"], "counts": ["arrived"], **workspace}


def emit_step(
    problem: Problem,
    tensors: Tensors,
    span_in: Callable[[Expr], Span],
    rows_of: Callable[[Place], ProjectedRows],
    *,
    writes: bool = True,
) -> None:
    """The launch: over the slots of row r that ``span_in(r)`` says; who comes first of new ones ``writes`` them."""
    shape, count, chunks = problem.shape, rows_together(problem), chunks_of(problem)
    blocks = -(-problem.rows // count)
    with launch((chunks, shape.kv_heads * blocks, shape.rows), THREADS) as (chunk, number, row, thread):
        span = span_in(row)
        head, first = T.Bind(number // blocks), T.Bind(number % blocks * count)
        place = Place(problem, span, row, head, first, count, thread)
        parts = chunk_range(place)
        new, meeting = rows_of(place), Meeting(problem, tensors)
        block = Block(place, tensors, new)
        with when(is_in(chunk, parts)):
            bounds, size = chunk_bounds(place, chunk), chunk_size(problem)
            block.ask(*bounds)
            has_new = T.Bind((chunk + 1) * size > span.used)
            is_writer = T.And(T.And(has_new, chunk * size <= span.used), first == 0)
            new.prepare(has_new, T.Bind(is_writer) if writes else None)
            block.begin()
            block.take(*bounds)
            totals = block.put_together()
            if chunks == 1:
                put_total(place, tensors, totals)
                return
            with T.If(parts[1] - parts[0] == 1):
                with T.Then():
                    put_total(place, tensors, totals)
                with T.Else():
                    meeting.put_together(place, chunk, parts, totals, blocks)


class _CacheRows(ProjectedRows):
    """See ProjectedRows: the others are live slots of the cache."""

    def fetch(self, name: str, held: Held, at: tuple[int, int], slot: Expr, element: Expr, count: int) -> None:
        """See Rows."""
        span, live = self.place.span, self.tensors[f"{name}_cache"]
        stored = T.max(T.min(slot, span.used - 1), 0)  # what is read of new slots is replaced
        held.copy(at, live, (span.sequence, self.place.head, stored, element), count)
