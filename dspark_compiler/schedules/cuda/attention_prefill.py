"""Attention of many tokens: a block for up to 256 query rows of a key/value head, running over the slots they see.

FlashAttention-2 (Dao, arXiv 2307.08691) on mma.m16n8k16: every warp has two tiles of 16 rows, so that what it reads of
keys and values serves both; stretches of 64 slots come through two stages of shared memory (cp.async). The query heads
of a key/value head share a block's stretches. Blocks with most to do start first.
"""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.async_copy import commit_copies, wait_copies
from dspark_compiler.schedules.cuda.attention_rows import Problem, QueryRows, SlotRows, padded, row_bytes, span_of
from dspark_compiler.schedules.cuda.attention_tiles import hide_unseen, store_rows
from dspark_compiler.schedules.cuda.attention_warp import WarpTile
from dspark_compiler.schedules.cuda.attention_warpgroups import attend_in_warpgroups, fits_warpgroups
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.threads import WARP, barrier, launch, shared
from dspark_compiler.schedules.cuda.tile_schedule import has_wgmma
from dspark_compiler.schedules.gpu.attention_call import Tensors
from dspark_compiler.schedules.tir import Buffer, Expr, when

_MULTIPROCESSORS = 132  # of an H100 or H200


@dataclass(frozen=True)
class PrefillPlan:
    """How a block is made up."""

    warps: int = 4
    tiles: int = 2  # of 16 rows a warp
    stretch: int = 64  # slots at once
    stages: int = 2

    @property
    def threads(self) -> int:
        """Threads a block."""
        return self.warps * WARP

    @property
    def height(self) -> int:
        """Query rows a block."""
        return self.warps * self.tiles * 16


def prefill_plan(problem: Problem) -> PrefillPlan:
    """Blocks of eight warps where there are enough for the chip; wide sums leave a warp registers for one tile only."""
    shape = problem.shape
    tiles = 2 if shape.value_dim <= 128 else 1
    large = PrefillPlan(warps=8, tiles=tiles)
    blocks = -(-problem.rows // large.height) * shape.kv_heads * shape.rows
    return large if blocks >= _MULTIPROCESSORS and shape.head_dim <= 128 else PrefillPlan(tiles=tiles)


def attend_rows(problem: Problem, tensors: Tensors, arch: str | None = None) -> None:
    """Launches the kernel that writes out [b,S,H,Dv]; 0 for tokens past the call's count.

    ``arch`` is "sm_90a" or its like; None: nothing beyond sm_80 is made use of.
    """
    if arch is not None and has_wgmma(arch) and fits_warpgroups(problem, tensors):
        attend_in_warpgroups(problem, tensors)
        return
    shape = problem.shape
    plan = prefill_plan(problem)
    blocks = -(-problem.rows // plan.height)
    with launch((shape.kv_heads, blocks, shape.rows), plan.threads) as (head, block, row, thread):
        await_previous()
        release_next()
        first = T.Bind((blocks - 1 - block) * plan.height)
        _Rows(problem, tensors, (row, head, first), thread).emit()


class _Rows:
    """Emits a block's work."""

    def __init__(self, problem: Problem, tensors: Tensors, place: tuple[Expr, Expr, Expr], thread: Expr) -> None:
        self._problem, self._tensors, self._place, self._thread = problem, tensors, place, thread
        self._plan = prefill_plan(problem)
        shape, (row, head, first) = problem.shape, place
        self._lane = thread % WARP
        self._warp_row = T.Bind(first + thread // WARP * (self._plan.tiles * 16))
        self._span = span_of(problem, tensors, row)
        self._slots = SlotRows(problem, tensors, self._span, head)
        self._key_row, self._value_row = row_bytes(shape.head_dim), row_bytes(shape.value_dim)
        self._stage = self._plan.stretch * (self._key_row + self._value_row)

    def emit(self) -> None:
        problem, span, plan = self._problem, self._span, self._plan
        shape, first, stretch = problem.shape, self._place[2], self._plan.stretch
        queries = plan.stages * self._stage
        memory = shared(queries + plan.height * self._key_row, "uint8", dynamic=True)
        dims = (shape.head_dim, shape.value_dim)
        warp = WarpTile(dims, problem.scoring, problem.dtype, memory, self._lane, plan.tiles, stretch)
        start = T.Bind(span.first_visible(problem, first // shape.group) // stretch * stretch)
        last = T.min(first + (plan.height - 1), problem.rows - 1) // shape.group
        # Tokens past the count see nothing.
        stop = T.Bind(T.Select(span.used + first // shape.group < span.end, T.min(span.end, span.used + last + 1), 0))
        steps = T.Bind(T.max(stop - start + (stretch - 1), 0) // stretch)
        if padded(shape.head_dim) != shape.head_dim:
            self._clear_padding(memory)
        rows = QueryRows(problem, self._tensors["q"], self._place, plan.height)
        rows.start(memory, queries, self._thread, plan.threads)
        for step in range(plan.stages - 1):
            self._fetch(memory, T.int32(step), start, steps)
        rows.finish(memory, queries, self._thread, plan.threads)
        warp.start()
        own_queries = queries + self._thread // WARP * (plan.tiles * 16 * self._key_row)
        with T.serial(0, steps) as step:
            wait_copies(plan.stages - 2)
            barrier()
            self._fetch(memory, step + (plan.stages - 1), start, steps)
            keys = T.Bind(step % plan.stages * self._stage)
            slot = T.Bind(start + step * stretch)

            def mask(tile: WarpTile, slot: Expr = slot) -> None:
                hide_unseen(problem, span, self._slots, tile, self._warp_row, slot)

            warp.add(own_queries, keys, keys + stretch * self._key_row, mask)
        warp.finish()
        store_rows(problem, self._tensors, self._place[:2], warp, self._warp_row, T.int32(problem.rows))

    def _fetch(self, memory: Buffer, step: Expr, start: Expr, steps: Expr) -> None:
        """Starts the copies of a step, if there is one; a group either way."""
        plan = self._plan
        with when(step < steps):
            at = T.Bind(step % plan.stages * self._stage)
            slot = T.Bind(start + step * plan.stretch)
            self._slots.copy("k", memory, at, slot, plan.stretch, self._thread, plan.threads)
            values = at + plan.stretch * self._key_row
            self._slots.copy("v", memory, values, slot, plan.stretch, self._thread, plan.threads)
        commit_copies()

    def _clear_padding(self, memory: Buffer) -> None:
        """Products run over padding, too; what copies never write has to be finite."""
        plan = self._plan
        with T.serial(0, plan.stages * self._stage // plan.threads) as turn:
            T.buffer_store(memory, T.uint8(0), [turn * plan.threads + self._thread])
        barrier()
