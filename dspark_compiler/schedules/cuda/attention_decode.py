"""Attention of few tokens, split along the slots: each block takes a chunk of them, a second kernel adds the chunks up.

A block's warps are four lines by up to four tiles of 16 query rows: line w takes slots 16w to 16w + 15 of every 64 and
streams them through a ring of its own in shared memory (cp.async), so that warps wait for nobody but those that share a
line. Split as in Flash-Decoding (Dao et al. 2023), into as many chunks as fill the chip once whatever is in the cache:
chunks double where the live slots do. Chunks and lines follow slot numbers, never the number of tokens, so a token's
result is bit for bit the same from decode and verify but where the chunks double between the two.
"""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.async_copy import commit_copies, wait_copies
from dspark_compiler.schedules.cuda.attention_lines import add_lines, lines_bytes
from dspark_compiler.schedules.cuda.attention_plan import LINES, ROUND, decode_plan, partial_sizes
from dspark_compiler.schedules.cuda.attention_rows import Problem, QueryRows, SlotRows, Span, padded, row_bytes, span_of
from dspark_compiler.schedules.cuda.attention_stages import STEP, stages_of
from dspark_compiler.schedules.cuda.attention_warp import WarpTile
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.launch_bounds import resident_blocks
from dspark_compiler.schedules.cuda.threads import WARP, barrier, launch, shared
from dspark_compiler.schedules.cuda.warp import part_barrier
from dspark_compiler.schedules.gpu.attention_call import Tensors
from dspark_compiler.schedules.tir import Buffer, Expr, when


def attend_chunks(problem: Problem, tensors: Tensors, workspace: Buffer) -> None:
    """Launches the first kernel: a chunk's sums, maximum and total per query row, to the workspace."""
    plan, shape = decode_plan(problem), problem.shape
    grid = (shape.kv_heads * plan.blocks, plan.chunks, shape.rows)
    # Two blocks of 256 threads or fewer fit where a thread keeps to 128 registers.
    resident = 2 if plan.threads == 256 and shape.head_dim + shape.value_dim <= 256 else 1
    with launch(grid, plan.threads) as (head_block, chunk, row, thread), resident_blocks(resident):
        release_next()
        await_previous()
        span = span_of(problem, tensors, row)
        head, first = T.Bind(head_block // plan.blocks), T.Bind(head_block % plan.blocks * (plan.tiles * 16))
        size = plan.chunking(span).size
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
        self._stages, self._key_row = stages_of(problem), row_bytes(shape.head_dim)
        self._opened = LINES * self._plan.stages * self._stages.bytes
        self._queries = self._opened + LINES * self._stages.opened
        self._worker = (self._tile * WARP + self._lane, WARP * self._plan.tiles)
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
            at = T.Bind(self._ring(step))
            opened = self._opened + self._line * self._stages.opened
            keys, values, scales = self._stages.open(memory, at, opened, self._worker)
            if scales is not None:
                self._meet()
            first = T.Bind(begin + step * ROUND + self._line * STEP)
            warp.add(queries, keys, values, lambda tile: self._mask(tile, first), scales)
        warp.finish()
        wait_copies(0)
        barrier()
        self._store(warp, memory, workspace)

    def _meet(self) -> None:
        """The warps of a line: what they copied is there, and the oldest stage is free again."""
        part_barrier(self._line + 1, self._plan.tiles)

    def _ring(self, step: Expr) -> Expr:
        return (self._line * self._plan.stages + step % self._plan.stages) * self._stages.bytes

    def _fetch(self, memory: Buffer, step: Expr, steps: Expr) -> None:
        """Starts the copies of a step, if there is one; a group either way."""
        _, begin, _ = self._chunk
        with when(step < steps):
            at = T.Bind(self._ring(step))
            first = T.Bind(begin + step * ROUND + self._line * STEP)
            self._stages.fetch(self._rows, memory, at, first, self._worker)
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
