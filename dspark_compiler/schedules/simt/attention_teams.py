"""Attention of queries in memory over keys and values that are stored already."""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.attention_block import Block
from dspark_compiler.schedules.simt.attention_held import Held
from dspark_compiler.schedules.simt.attention_parts import Parts, chunk_bounds, chunk_range, chunks_of, is_in, put_total
from dspark_compiler.schedules.simt.attention_place import Place, rows_together
from dspark_compiler.schedules.simt.attention_totals import THREADS, Totals
from dspark_compiler.schedules.simt.cache_rows import Problem, Tensors, scale_name, span_of
from dspark_compiler.schedules.simt.stored import copy
from dspark_compiler.schedules.simt.threads import launch
from dspark_compiler.schedules.tir import Buffer, Expr, when


def attend(problem: Problem, tensors: Tensors) -> None:
    """Launches the attention of all query rows, part by part; a single part writes "out"."""
    shape, count, chunks = problem.shape, rows_together(problem), chunks_of(problem)
    blocks = -(-problem.rows // count)
    with launch((chunks, shape.kv_heads * blocks, shape.rows), THREADS) as (chunk, number, row, thread):
        span = span_of(problem, tensors, row)
        head, first = T.Bind(number // blocks), T.Bind(number % blocks * count)
        place = Place(problem, span, row, head, first, count, thread)
        block = Block(place, tensors, _Stored(place, tensors))
        if chunks == 1:
            put_total(place, tensors, _attended(block, *place.bounds()))
            return
        with when(is_in(chunk, chunk_range(place))):
            totals = _attended(block, *chunk_bounds(place, chunk))
            Parts(problem, tensors, at_once=False).put(place, chunk, totals)


def combine(problem: Problem, tensors: Tensors) -> None:
    """Launches the last step where there are several parts: "out" of what they left in the workspace."""
    shape = problem.shape
    with launch((problem.rows, shape.kv_heads, shape.rows), THREADS) as (m, head, row, thread):
        place = Place(problem, span_of(problem, tensors, row), row, head, m, 1, thread)
        Parts(problem, tensors, at_once=False).write_out(place, *chunk_range(place))


class _Stored:
    """See Rows: the call's queries, live slots and scratch."""

    first_new = None

    def __init__(self, place: Place, tensors: Tensors) -> None:
        self._place, self._tensors = place, tensors

    def query(self, i: int, target: Buffer, at: tuple[int, int], element: Expr, count: int) -> None:
        """See Rows."""
        token, head = self._place.query(i)
        copy(target, at, self._tensors["q"], (self._place.row, head, token, element), count)

    def fetch(self, name: str, held: Held, at: tuple[int, int], slot: Expr, element: Expr, count: int) -> None:
        """See Rows."""
        place, span = self._place, self._place.span
        live = self._tensors[f"{name}_cache"]
        if not place.problem.shape.scratch:
            held.copy(at, live, (span.sequence, place.head, slot, element), count)
            return
        with T.If(slot < span.used):
            with T.Then():
                held.copy(at, live, (span.sequence, place.head, slot, element), count)
            with T.Else():
                row = (span.sequence, place.head, slot - span.used, element)
                held.copy(at, self._tensors[f"{name}_scratch"], row, count)

    def fetch_new(self, name: str, held: Held, at: tuple[int, int], token: Expr, element: Expr, count: int) -> None:
        """See Rows."""
        raise AssertionError("all slots are stored")

    def fetch_scale(self, name: str, target: Buffer, at: int, slot: Expr) -> None:
        """See Rows."""
        place, span = self._place, self._place.span
        live = self._tensors[scale_name(name, "cache")]
        if not place.problem.shape.scratch:
            T.buffer_store(target, live[span.sequence, place.head, slot], [at])
            return
        scratch = self._tensors[scale_name(name, "scratch")]
        with T.If(slot < span.used):
            with T.Then():
                T.buffer_store(target, live[span.sequence, place.head, slot], [at])
            with T.Else():
                T.buffer_store(target, scratch[span.sequence, place.head, slot - span.used], [at])


def _attended(block: Block, begin: Expr, stop: Expr) -> Totals:
    block.ask(begin, stop)
    block.begin()
    block.take(begin, stop)
    return block.put_together()
