"""A warp's share of attention on tensor cores: 16-row tiles of queries against stretches of slots in shared memory.

mma.m16n8k16 twice, with the softmax between them in registers: the sums of the first product, rounded in pairs, are the
first operand of the second (FlashAttention-2, arXiv 2307.08691). With g = lane / 4 and t = lane % 4, a thread holds of
every tile rows g and g + 8, and of every eight columns 2t and 2t + 1. Maxima are of raw scores; what is summed is
2^(rate (score - maximum)), with rate = scale log2(e).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import Scoring
from dspark_compiler.schedules.cuda.attention_rows import PIECE, padded, row_bytes
from dspark_compiler.schedules.cuda.floats import fused, power_of_two, product, quick_tanh
from dspark_compiler.schedules.cuda.memory import load_float
from dspark_compiler.schedules.cuda.mma import multiply_add, pack_pair
from dspark_compiler.schedules.cuda.threads import address, device, registers, run
from dspark_compiler.schedules.cuda.warp import from_lane, load_matrices
from dspark_compiler.schedules.tir import Buffer, Expr

LOG2_E = math.log2(math.e)
HIDDEN = -math.inf  # score of a slot a row does not see


@dataclass(frozen=True)
class Scales:
    """Where in shared memory the float32 scales of a stretch's slots begin; values' are to be taken ``room`` times."""

    keys: Expr
    values: Expr
    room: float


class WarpTile:
    """Running softmax of ``tiles`` x 16 query rows over stretches of ``stretch`` slots, a multiple of 16.

    ``memory`` is the block's shared memory, uint8, which rows in the layout of ``row_bytes`` are read from.
    """

    def __init__(
        self,
        dims: tuple[int, int],
        scoring: Scoring,
        dtype: str,
        memory: Buffer,
        lane: Expr,
        tiles: int,
        stretch: int,
    ) -> None:
        self.dim, self.value_dim = dims
        self.scoring, self.dtype, self.memory, self.lane = scoring, dtype, memory, lane
        self.tiles, self.columns = tiles, stretch // 8  # of scores
        self.outputs = padded(self.value_dim) // 8
        self.sums = registers(tiles * self.outputs * 4)
        self.maxima, self.totals = registers(tiles * 2), registers(tiles * 2)
        self._scores = registers(tiles * self.columns * 4)
        self._a, self._b = registers(tiles * 4, "uint32"), registers(4, "uint32")
        self._queries: Buffer | None = None

    @property
    def rate(self) -> float:
        """What a score is multiplied with to be an exponent of two."""
        return LOG2_E if self.scoring.softcap else self.scoring.scale * LOG2_E

    def start(self) -> None:
        """Nothing seen yet."""
        for i in range(self.tiles * self.outputs * 4):
            T.buffer_store(self.sums, T.float32(0.0), [i])
        for i in range(self.tiles * 2):
            T.buffer_store(self.maxima, T.float32(HIDDEN), [i])
            T.buffer_store(self.totals, T.float32(0.0), [i])

    def keep_queries(self, at: Expr) -> None:
        """Holds the query rows at memory[at:] in registers from now on."""
        steps = padded(self.dim) // 16
        self._queries = registers(self.tiles * steps * 4, "uint32")
        for tile in range(self.tiles):
            for step in range(steps):
                self._load_queries(self._queries, (tile * steps + step) * 4, at, tile, step)

    def add(
        self,
        queries: Expr,
        keys: Expr,
        values: Expr,
        mask: Callable[["WarpTile"], None],
        scales: Scales | None = None,
    ) -> None:
        """Takes in the stretch of slots whose rows are at memory[keys:] and memory[values:].

        ``mask`` is called between the scores and the softmax, to call ``hide``.
        """
        self._multiply_keys(queries, keys)
        if scales is not None:
            self._scale(scales.keys, 1.0)
        self._cap()
        mask(self)
        self._softmax()
        if scales is not None:
            self._scale(scales.values, scales.room)
        self._multiply_values(values)

    def hide(self, visible: Callable[[Expr, int], Expr]) -> None:
        """Hides scores; visible(slot of the stretch, row half) says of rows 8 half + g of tiles 0, 1, … what they see.

        ``half`` counts on over the tiles.
        """
        for tile in range(self.tiles):
            for column in range(self.columns):
                for i in range(4):
                    at = (tile * self.columns + column) * 4 + i
                    seen = visible(column * 8 + self.lane % 4 * 2 + i % 2, tile * 2 + i // 2)
                    T.buffer_store(self._scores, T.Select(seen, self._scores[at], T.float32(HIDDEN)), [at])

    def hide_outside(self, half: int, low: Expr, high: Expr) -> None:
        """Hides the scores of rows 8 half + g of the stretch's slots before ``low`` and behind ``high``, int32."""
        name = f"dspark_hide_outside_{self.columns}"
        source = f"""
__device__ __forceinline__ void {name}(float* s, int low, int high) {{
  #pragma unroll
  for (int i = 0; i < {2 * self.columns}; ++i) {{
    int slot = i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2, at = i / 2 * 4 + i % 2;
    s[at] = slot < low || slot > high ? __int_as_float(0xff800000) : s[at];
  }}
}}
"""
        first = half // 2 * self.columns * 4 + half % 2 * 2
        run(device(name, address(self._scores, first), low, high, source=source))

    def finish(self) -> None:
        """Adds up the totals of a row's four threads."""
        for i in range(self.tiles * 2):
            for distance in (1, 2):
                T.buffer_store(self.totals, self.totals[i] + from_lane(self.totals[i], distance), [i])

    def _matrix(self, rows: int, row_step: int, column_step: int) -> tuple[Expr, Expr]:
        """Row and piece this lane points to for four 8x8 matrices; steps say which bit of their number moves what."""
        matrix, row = self.lane // 8, self.lane % 8
        return rows + (matrix // row_step % 2) * 8 + row, matrix // column_step % 2

    def _load_queries(self, target: Buffer, to: int, at: Expr, tile: int, step: int) -> None:
        row, piece = self._matrix(tile * 16, 1, 2)
        place = at + row * row_bytes(self.dim) + (piece + step * 2) * PIECE
        load_matrices(target, to, address(self.memory, place))

    def _multiply_keys(self, queries: Expr, keys: Expr) -> None:
        steps, scores = padded(self.dim) // 16, self._scores
        for i in range(self.tiles * self.columns * 4):
            T.buffer_store(scores, T.float32(0.0), [i])
        for step in range(steps):
            if self._queries is None:
                for tile in range(self.tiles):
                    self._load_queries(self._a, tile * 4, queries, tile, step)
            for column in range(0, self.columns, 2):
                row, piece = self._matrix(column * 8, 2, 1)
                place = keys + row * row_bytes(self.dim) + (piece + step * 2) * PIECE
                load_matrices(self._b, 0, address(self.memory, place))
                for tile in range(self.tiles):
                    for half in range(2):
                        to = (tile * self.columns + column + half) * 4
                        if self._queries is None:
                            multiply_add(scores, self._a, self._b, self.dtype, at=(to, tile * 4, half * 2))
                        else:
                            at = (to, (tile * steps + step) * 4, half * 2)
                            multiply_add(scores, self._queries, self._b, self.dtype, at=at)

    def _scale(self, scales: Expr, room: float) -> None:
        """Multiplies the scores, or what weights have become of them, with their slots' scales."""
        for column in range(self.columns):
            for i in range(2):
                place = scales + (column * 8 + self.lane % 4 * 2 + i) * 4
                scale = T.Bind(product(load_float(address(self.memory, place)), T.float32(room)))
                for tile in range(self.tiles):
                    for half in range(2):
                        at = (tile * self.columns + column) * 4 + half * 2 + i
                        T.buffer_store(self._scores, product(self._scores[at], scale), [at])

    def _cap(self) -> None:
        if not self.scoring.softcap:
            return
        cap = T.float32(self.scoring.softcap)
        for i in range(self.tiles * self.columns * 4):
            value = self._scores[i] * T.float32(self.scoring.scale / self.scoring.softcap)
            T.buffer_store(self._scores, cap * quick_tanh(value), [i])

    def _softmax(self) -> None:
        self._rescale(self._weigh())

    def _weigh(self) -> list[Expr]:
        """Scores become weights relative to the new maxima; returns what earlier sums have to be multiplied with."""
        scores, rate, decays = self._scores, T.float32(self.rate), []
        for half in range(self.tiles * 2):
            first = half // 2 * self.columns * 4 + half % 2 * 2
            mine = [first + column * 4 + i for column in range(self.columns) for i in range(2)]
            peak = self._peak(half, mine)
            # A row that has seen nothing yet has no maximum; any finite number does.
            known = T.Bind(T.Select(peak == T.float32(HIDDEN), T.float32(0.0), peak))
            base = T.Bind(product(known, rate))
            # Exactly 1 while the maximum stays: a stretch that a row does not see changes no bit of it.
            decays.append(T.Bind(power_of_two((self.maxima[half] - known) * rate)))
            T.buffer_store(self.maxima, peak, [half])
            for at in mine:
                T.buffer_store(scores, power_of_two(fused(scores[at], rate, -base)), [at])
            weight = reduce(lambda a, b: a + b, (scores[at] for at in mine))
            T.buffer_store(self.totals, fused(self.totals[half], decays[half], weight), [half])
        return decays

    def _rescale(self, decays: list[Expr]) -> None:
        for at in range(self.tiles * self.outputs * 4):
            decay = decays[at // (self.outputs * 4) * 2 + at % 4 // 2]
            T.buffer_store(self.sums, product(self.sums[at], decay), [at])

    def _peak(self, half: int, scores: list[int]) -> Expr:
        """The row's maximum with these scores."""
        peak = registers(1)
        T.buffer_store(peak, self.maxima[half], [0])
        for at in scores:
            T.buffer_store(peak, T.max(peak[0], self._scores[at]), [0])
        for distance in (1, 2):
            T.buffer_store(peak, T.max(peak[0], from_lane(peak[0], distance)), [0])
        return T.Bind(peak[0])

    def _multiply_values(self, values: Expr) -> None:
        scores = self._scores
        for step in range(self.columns // 2):
            for tile in range(self.tiles):
                for i in range(4):
                    at = (tile * self.columns + step * 2 + i // 2) * 4 + i % 2 * 2
                    T.buffer_store(self._a, pack_pair(scores[at], scores[at + 1], self.dtype), [tile * 4 + i])
            for output in range(0, self.outputs, 2):
                row, piece = self._matrix(step * 16, 1, 2)
                place = values + row * row_bytes(self.value_dim) + (piece + output) * PIECE
                load_matrices(self._b, 0, address(self.memory, place), transposed=True)
                for tile in range(self.tiles):
                    for half in range(2):
                        to = (tile * self.outputs + output + half) * 4
                        multiply_add(self.sums, self._a, self._b, self.dtype, at=(to, tile * 4, half * 2))
