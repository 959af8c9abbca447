"""A warpgroup's share of attention on Hopper: its products are wgmma, with the softmax of WarpTile between them.

FlashAttention-3 (Shah et al., arXiv 2407.08608): while a stretch's weights are multiplied with its values, the next
one's scores are made and weighed. A warp's part of a warpgroup's sums lies as that of mma.m16n8k16 does.
"""

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda import async_copy, wgmma
from dspark_compiler.schedules.cuda.attention_rows import Problem
from dspark_compiler.schedules.cuda.attention_stretches import COLUMNS, STRETCH, StretchRing
from dspark_compiler.schedules.cuda.attention_warp import WarpTile
from dspark_compiler.schedules.cuda.memory import clear16
from dspark_compiler.schedules.cuda.mma import pack_pair
from dspark_compiler.schedules.cuda.threads import WARP, address, registers
from dspark_compiler.schedules.cuda.warp import part_barrier
from dspark_compiler.schedules.tir import Buffer, Expr, when

Mask = Callable[[WarpTile], None]

_PIECE = 16  # bytes cleared at once


class GroupTile(WarpTile):
    """Running softmax of a warpgroup's 64 query rows, of which a warp has 16, over stretches of two rings.

    Steps are the rings'. The block's ``rows`` queries are at memory[0:], 64 columns by 64 columns, in 128-byte swizzle.
    """

    def __init__(self, problem: Problem, memory: Buffer, rows: int, thread: Expr) -> None:
        dims = (problem.shape.head_dim, problem.shape.value_dim)
        super().__init__(dims, problem.scoring, problem.dtype, memory, thread % WARP, 1, STRETCH)
        self._rows, self._thread = rows, thread
        self._weights = registers(STRETCH // 4, "uint32")

    def first(self, keys: StretchRing, step: Expr, mask: Mask) -> None:
        """Weighs a first stretch."""
        self._start_scores(keys, step)
        wgmma.wait_products(self._scores, 0)
        keys.give_back(step, self._thread)
        self._weigh_stretch(mask)
        self._round()

    def next(self, keys: StretchRing, values: StretchRing, step: Expr, mask: Mask) -> None:
        """Weighs the stretch of ``step`` and adds the values of the one before."""
        self._start_scores(keys, step)
        self._start_sums(values, step - 1)
        wgmma.wait_products(self._scores, 1)
        keys.give_back(step, self._thread)
        decays = self._weigh_stretch(mask)
        wgmma.wait_products(self.sums, 0)
        values.give_back(step - 1, self._thread)
        self._rescale(decays)
        self._round()

    def last(self, values: StretchRing, step: Expr, count: Expr) -> None:
        """Adds the values of the last stretch, of which ``count`` slots are anyone's."""
        values.wait(step)
        with when(count < STRETCH):
            self._clear(values, step, count)
        self._start_sums(values, step)
        wgmma.wait_products(self.sums, 0)
        values.give_back(step, self._thread)

    def _start_scores(self, keys: StretchRing, step: Expr) -> None:
        keys.wait(step)
        queries = address(self.memory, self._thread // wgmma.WARPGROUP * (wgmma.GROUP_ROWS * COLUMNS * 2))
        sizes = {"a_step": self._rows * COLUMNS * 2, "b_step": STRETCH * COLUMNS * 2}
        wgmma.multiply_rows(
            self._scores, queries, keys.stage(step), self.dtype, columns=STRETCH, depth=self.dim, **sizes
        )

    def _start_sums(self, values: StretchRing, step: Expr) -> None:
        values.wait(step)
        sizes = {"columns": self.value_dim, "depth": STRETCH, "b_step": STRETCH * COLUMNS * 2}
        wgmma.multiply_columns(self.sums, self._weights, values.stage(step), self.dtype, **sizes)

    def _weigh_stretch(self, mask: Mask) -> list[Expr]:
        self._cap()
        mask(self)
        return self._weigh()

    def _round(self) -> None:
        """The weights as operand of the second product."""
        for i in range(STRETCH // 4):
            at = (i // 4 * 2 + i % 4 // 2) * 4 + i % 2 * 2
            T.buffer_store(self._weights, pack_pair(self._scores[at], self._scores[at + 1], self.dtype), [i])

    def _clear(self, values: StretchRing, step: Expr, count: Expr) -> None:
        """Slots that are nobody's have a weight of 0, but may hold what times 0 is not 0.

        Each warpgroup clears all that it reads: the other one writes the same.
        """
        for start in range(0, STRETCH * self.value_dim * 2 // _PIECE, wgmma.WARPGROUP):
            piece = T.Bind(start + self._thread % wgmma.WARPGROUP)
            with when(piece // (COLUMNS * 2 // _PIECE) % STRETCH >= count):
                clear16(values.stage(step, piece * _PIECE))
        async_copy.publish_writes()
        part_barrier(self._thread // wgmma.WARPGROUP + 1, wgmma.WARPGROUP // WARP)
