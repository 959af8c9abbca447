"""Attention of few tokens, split along the slots: each block takes a chunk of them, a second kernel adds the chunks up.

A block's warps are ``LANES`` lines by up to four tiles of 16 query rows: line w takes slots 16w to 16w + 15 of every 64
and streams them through a ring of its own in shared memory (cp.async), so that warps wait for nobody but those that
share a line. Chunks and lines follow slot numbers, never the number of tokens: a token's result is bit for bit the same
from decode and verify. Split as in Flash-Decoding (Dao et al. 2023); a chunk's weights are relative to its own maximum.
"""

from dataclasses import dataclass
from functools import reduce

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.attention_rows import (
    Problem,
    SlotRows,
    Span,
    Tensors,
    load_queries,
    padded,
    row_bytes,
    span_of,
)
from dspark_compiler.schedules.cuda.attention_warp import HIDDEN, WarpTile
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, launch, shared
from dspark_compiler.schedules.cuda.warp import (
    commit_copies,
    load_float,
    part_barrier,
    power_of_two,
    store_float,
    store_pair,
    wait_copies,
)
from dspark_compiler.schedules.tir import Buffer, Expr, when

LINES = 4
STEP = 16  # slots a line takes at once
ROUND = LINES * STEP


@dataclass(frozen=True)
class DecodePlan:
    """How a call is cut up; sizes depend on the head sizes and the capacity, not on the number of tokens."""

    chunk: int  # slots a block
    chunks: int
    tiles: int  # 16-row tiles of queries a block
    blocks: int  # of tiles, that cover a head's rows
    stages: int  # of a line's ring

    @property
    def threads(self) -> int:
        """Threads a block."""
        return LINES * self.tiles * WARP


def decode_plan(problem: Problem) -> DecodePlan:
    """Short chunks where there are few of them; rings that let two blocks of 128-wide heads share a multiprocessor."""
    shape = problem.shape
    chunk = 64 if problem.slots <= 4096 else 256 if problem.slots <= 16384 else 512
    wide = shape.head_dim + shape.value_dim > 256
    tiles = min(2 if wide else 4, -(-problem.rows // 16))
    return DecodePlan(chunk, -(-problem.slots // chunk), tiles, -(-problem.rows // (16 * tiles)), 2 if wide else 3)


def partial_sizes(problem: Problem) -> tuple[int, int]:
    """Float32 in the workspace: sums [b, G, chunks, rows, Dv], then (maximum, total) [b, G, chunks, rows, 2]."""
    rows = problem.shape.rows * problem.shape.kv_heads * decode_plan(problem).chunks * problem.rows
    return rows * problem.shape.value_dim, rows * 2


def attend_chunks(problem: Problem, tensors: Tensors, workspace: Buffer) -> None:
    """Launches the first kernel: a chunk's sums, maximum and total per query row, to the workspace."""
    plan, shape = decode_plan(problem), problem.shape
    grid = (plan.chunks, shape.kv_heads * plan.blocks, shape.rows)
    with launch(grid, plan.threads) as (chunk, head_block, row, thread):
        span = span_of(problem, tensors, row)
        head, first = T.Bind(head_block // plan.blocks), T.Bind(head_block % plan.blocks * (plan.tiles * 16))
        begin = T.Bind(chunk * plan.chunk)
        end = T.Bind(T.min(begin + plan.chunk, span.end))
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
        outputs = padded(shape.value_dim) // 2
        size = max(
            self._queries + plan.tiles * 16 * self._key_row,
            4 * plan.tiles * WARP * (2 * LINES + LINES // 2 * (outputs + 2)),
        )
        memory = shared(size, "uint8", dynamic=True)
        warp = WarpTile(
            (shape.head_dim, shape.value_dim), self._problem.scoring, self._problem.dtype, memory, self._lane, 1, STEP
        )
        _, begin, end = self._chunk
        steps = T.Bind((end - begin + (ROUND - 1)) // ROUND)
        if padded(shape.head_dim) != shape.head_dim:
            self._clear_padding(memory)
        for stage in range(plan.stages - 1):
            self._fetch(memory, T.int32(stage), steps)
        load_queries(
            self._problem,
            self._tensors["q"],
            memory,
            self._queries,
            self._place,
            plan.tiles * 16,
            self._thread,
            plan.threads,
        )
        barrier()
        queries = self._queries + self._tile * (16 * self._key_row)
        warp.start()
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
        self._reduce(warp, memory)
        with when(self._line == 0):
            self._store(warp, workspace)

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

    def _reduce(self, warp: WarpTile, memory: Buffer) -> None:
        """Adds the lines of a tile up, in an order that is always the same; line 0 ends with the sums."""
        plan, lane = self._plan, self._lane
        floats = WARP * 4  # bytes of a register of a warp

        def cell(base: Expr, register: int) -> Expr:
            return address(memory, base + register * floats + lane * 4)

        column = (self._tile * LINES) * (2 * floats)
        for half in range(2):
            store_float(cell(column + self._line * (2 * floats), half), warp.maxima[half])
        barrier()
        for half in range(2):
            cells = (load_float(cell(column + line * (2 * floats), half)) for line in range(LINES))
            peak = T.Bind(reduce(T.max, cells))
            known = T.Bind(T.Select(peak == T.float32(HIDDEN), T.float32(0.0), peak))
            scale = T.Bind(power_of_two((warp.maxima[half] - known) * T.float32(warp.rate)))
            T.buffer_store(warp.maxima, peak, [half])
            T.buffer_store(warp.totals, warp.totals[half] * scale, [half])
            for at in range(half * 2, warp.outputs * 4, 4):
                for i in range(2):
                    T.buffer_store(warp.sums, warp.sums[at + i] * scale, [at + i])
        held = [*((warp.sums, i) for i in range(warp.outputs * 4)), *((warp.totals, i) for i in range(2))]
        start = plan.tiles * LINES * 2 * floats
        distance = LINES // 2
        while distance:
            base = start + (self._tile * (LINES // 2) + self._line % distance) * (len(held) * floats)
            with when(T.And(self._line >= distance, self._line < 2 * distance)):
                for number, (source, i) in enumerate(held):
                    store_float(cell(base, number), source[i])
            barrier()
            with when(self._line < distance):
                for number, (source, i) in enumerate(held):
                    T.buffer_store(source, source[i] + load_float(cell(base, number)), [i])
            barrier()
            distance //= 2

    def _store(self, warp: WarpTile, workspace: Buffer) -> None:
        problem, plan = self._problem, self._plan
        shape = problem.shape
        row, head, first = self._place
        sums, _ = partial_sizes(problem)
        base = ((row * shape.kv_heads + head) * plan.chunks + self._chunk[0]) * problem.rows
        for half in range(2):
            m = first + self._tile * 16 + self._lane // 4 + 8 * half
            with when(m < problem.rows):
                for output in range(warp.outputs):
                    d = output * 8 + self._lane % 4 * 2
                    with when(d < shape.value_dim):
                        at = output * 4 + half * 2
                        store_pair(
                            address(workspace, (base + m) * shape.value_dim + d), warp.sums[at], warp.sums[at + 1]
                        )
                with when(self._lane % 4 == 0):
                    store_pair(address(workspace, sums + (base + m) * 2), warp.maxima[half], warp.totals[half])
