"""Attention of few tokens, split along the slots: each block takes a chunk of them, a second kernel adds the chunks up.

A block's warps are four lines by up to four tiles of 16 query rows: line w takes slots 16w to 16w + 15 of every 64 and
streams them through a ring of its own in shared memory (cp.async), so that warps wait for nobody but those that share a
line. Split as in Flash-Decoding (Dao et al. 2023), into as many chunks as fill the chip once whatever is in the cache:
chunks double where the live slots do. Chunks and lines follow slot numbers, never the number of tokens, so a token's
result is bit for bit the same from decode and verify but where the chunks double between the two.
"""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.async_copy import commit_copies, wait_copies
from dspark_compiler.schedules.cuda.attention_lines import add_lines, lines_bytes
from dspark_compiler.schedules.cuda.attention_rows import (
    Problem,
    QueryRows,
    SlotRows,
    Span,
    Tensors,
    padded,
    row_bytes,
    span_of,
)
from dspark_compiler.schedules.cuda.attention_warp import WarpTile
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.floats import bit_length
from dspark_compiler.schedules.cuda.launch_bounds import resident_blocks
from dspark_compiler.schedules.cuda.threads import WARP, barrier, launch, shared
from dspark_compiler.schedules.cuda.warp import part_barrier
from dspark_compiler.schedules.tir import Buffer, Expr, when

LINES = 4
STEP = 16  # slots a line takes at once
ROUND = LINES * STEP
_BLOCKS = 512  # and no fewer than half of it: two for every multiprocessor of an H100 or H200, about
_MEMORY, _RESERVED = 227 * 1024, 1024  # bytes that a multiprocessor's blocks can have, and that each costs besides


@dataclass(frozen=True)
class DecodePlan:
    """How a call is cut up; chunks depend on heads and slots, not on the number of tokens."""

    parts: int  # chunks until they double
    chunks: int  # at most
    tiles: int  # 16-row tiles of queries a block
    blocks: int  # of tiles, that cover a head's rows
    stages: int  # of a line's ring

    @property
    def threads(self) -> int:
        """Threads a block."""
        return LINES * self.tiles * WARP

    def chunk(self, span: Span) -> Expr:
        """Slots a chunk, ``parts`` of them being more than are live."""
        return T.Bind(T.int32(ROUND) << bit_length(span.used // (ROUND * self.parts)))


def decode_plan(problem: Problem) -> DecodePlan:
    """Chunks for two blocks a multiprocessor and more; rings as long as there is memory for."""
    shape = problem.shape
    parts = min(128, max(8, _BLOCKS // (shape.rows * shape.kv_heads)))
    # The call's own tokens may reach into one more.
    chunks = min(parts + -(-shape.width // ROUND), -(-problem.slots // ROUND))
    tiles = min(4 if max(shape.head_dim, shape.value_dim) <= 128 else 2, -(-problem.rows // 16))
    return DecodePlan(parts, chunks, tiles, -(-problem.rows // (16 * tiles)), _stages(problem, tiles))


def _stages(problem: Problem, tiles: int) -> int:
    """As many as there is memory for with two blocks on a multiprocessor, or one where two have no room."""
    keys, values = row_bytes(problem.shape.head_dim), row_bytes(problem.shape.value_dim)
    # More than two tiles leave no registers for a second block.
    for sharing in (2, 1) if tiles <= 2 else (1,):
        stages = (_MEMORY // sharing - _RESERVED - tiles * 16 * keys) // (ROUND * (keys + values))
        if stages > 2:
            return min(stages, 5)
    return 2


def partial_sizes(problem: Problem) -> tuple[int, int]:
    """Float32 in the workspace: sums [b, G, chunks, rows, Dv], then (maximum, total) [b, G, chunks, rows, 2]."""
    rows = problem.shape.rows * problem.shape.kv_heads * decode_plan(problem).chunks * problem.rows
    return rows * problem.shape.value_dim, rows * 2


def attend_chunks(problem: Problem, tensors: Tensors, workspace: Buffer) -> None:
    """Launches the first kernel: a chunk's sums, maximum and total per query row, to the workspace."""
    plan, shape = decode_plan(problem), problem.shape
    grid = (shape.kv_heads * plan.blocks, plan.chunks, shape.rows)
    # Two blocks of 256 threads or fewer fit where a thread keeps to 128 registers.
    resident = 2 if plan.threads == 256 and shape.head_dim + shape.value_dim <= 256 else 1
    with launch(grid, plan.threads) as (head_block, chunk, row, thread), resident_blocks(resident):
        await_previous()
        release_next()
        span = span_of(problem, tensors, row)
        head, first = T.Bind(head_block // plan.blocks), T.Bind(head_block % plan.blocks * (plan.tiles * 16))
        size = plan.chunk(span)
        begin = T.Bind(chunk * size)
        end = T.Bind(T.min(begin + size, span.end))
        visible = span.first_visible(problem, first // shape.group)
        with when(T.And(begin < span.end, visible < end)):
            _Chunk(problem, tensors, span, (row, head, first), (chunk, begin, end), thread).emit(workspace)


class _Chunk:
    """Emits a block's work."""

    def __init__(
        self,
        problem: Problem,
        tensors: Tensors,
        span: Span,
        place: tuple[Expr, Expr, Expr],
        chunk: tuple[Expr, Expr, Expr],
        thread: Expr,
    ) -> None:
        self._problem, self._tensors, self._span, self._place, self._chunk = problem, tensors, span, place, chunk
        self._plan, shape = decode_plan(problem), problem.shape
        self._thread, self._lane = thread, thread % WARP
        self._line, self._tile = T.Bind(thread // WARP % LINES), T.Bind(thread // (WARP * LINES))
        self._key_row, self._value_row = row_bytes(shape.head_dim), row_bytes(shape.value_dim)
        self._stage = STEP * (self._key_row + self._value_row)
        self._queries = LINES * self._plan.stages * self._stage
        self._rows = SlotRows(problem, tensors, span, place[1])

    def emit(self, workspace: Buffer) -> None:
        plan, shape = self._plan, self._problem.shape
        size = max(self._queries + plan.tiles * 16 * self._key_row, plan.tiles * lines_bytes(shape.value_dim, LINES))
        memory = shared(size, "uint8", dynamic=True)
        warp = WarpTile(
            (shape.head_dim, shape.value_dim), self._problem.scoring, self._problem.dtype, memory, self._lane, 1, STEP
        )
        _, begin, end = self._chunk
        steps = T.Bind((end - begin + (ROUND - 1)) // ROUND)
        if padded(shape.head_dim) != shape.head_dim:
            self._clear_padding(memory)
        rows = QueryRows(self._problem, self._tensors["q"], self._place, plan.tiles * 16)
        rows.start(memory, self._queries, self._thread, plan.threads)
        for stage in range(plan.stages - 1):
            self._fetch(memory, T.int32(stage), steps)
        rows.finish(memory, self._queries, self._thread, plan.threads)
        warp.start()
        wait_copies(plan.stages - 2)
        barrier()
        queries = self._queries + self._tile * (16 * self._key_row)
        if shape.head_dim <= 128:
            warp.keep_queries(queries)
        with T.serial(0, steps) as step:
            wait_copies(plan.stages - 2)
            self._meet()
            self._fetch(memory, step + (plan.stages - 1), steps)
            keys = T.Bind(self._ring(step))
            first = T.Bind(begin + step * ROUND + self._line * STEP)
            warp.add(queries, keys, keys + STEP * self._key_row, lambda tile: self._mask(tile, first))
        warp.finish()
        wait_copies(0)
        barrier()
        self._store(warp, memory, workspace)

    def _meet(self) -> None:
        """The warps of a line: what they copied is there, and the oldest stage is free again."""
        part_barrier(self._line + 1, self._plan.tiles)

    def _ring(self, step: Expr) -> Expr:
        return (self._line * self._plan.stages + step % self._plan.stages) * self._stage

    def _fetch(self, memory: Buffer, step: Expr, steps: Expr) -> None:
        """Starts the copies of a step, if there is one; a group either way."""
        _, begin, _ = self._chunk
        workers = WARP * self._plan.tiles
        worker = self._tile * WARP + self._lane
        with when(step < steps):
            at = T.Bind(self._ring(step))
            first = T.Bind(begin + step * ROUND + self._line * STEP)
            self._rows.copy("k", memory, at, first, STEP, worker, workers)
            self._rows.copy("v", memory, at + STEP * self._key_row, first, STEP, worker, workers)
        commit_copies()

    def _clear_padding(self, memory: Buffer) -> None:
        """Products run over padding, too; what copies never write has to be finite."""
        with T.serial(0, -(-self._queries // self._plan.threads)) as turn:
            at = turn * self._plan.threads + self._thread
            with when(at < self._queries):
                T.buffer_store(memory, T.uint8(0), [at])
        barrier()

    def _mask(self, tile: WarpTile, first: Expr) -> None:
        problem, span = self._problem, self._span
        window, group = problem.scoring.window, problem.shape.group
        row = self._place[2] + self._tile * 16 + self._lane // 4
        tokens = [T.Bind((row + 8 * half) // group) for half in range(2)]

        def visible(number: Expr, half: int) -> Expr:
            slot, own = first + number, span.used + tokens[half]
            seen = T.And(slot <= own, slot < span.end)
            if not window:
                return seen
            if not problem.form.slot_position:
                return T.And(seen, slot > own - window)
            return T.And(seen, self._rows.position(slot) > span.length + tokens[half] - window)

        tile.hide(visible)

    def _store(self, warp: WarpTile, memory: Buffer, workspace: Buffer) -> None:
        """Adds up the tile's lines, into the workspace."""
        problem, shape = self._problem, self._problem.shape
        row, head, first = self._place
        place = ((row * shape.kv_heads + head) * self._plan.chunks + self._chunk[0]) * problem.rows
        tile = first + self._tile * 16
        at = self._tile * lines_bytes(shape.value_dim, LINES)
        add_lines(
            warp, (memory, at), (self._line, LINES), (workspace, partial_sizes(problem)[0], place, tile, problem.rows)
        )
