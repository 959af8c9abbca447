"""Adds up what the warps of a tile have, each from slots of its own, through shared memory."""

from functools import reduce

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.attention_rows import padded
from dspark_compiler.schedules.cuda.attention_warp import HIDDEN, WarpTile
from dspark_compiler.schedules.cuda.floats import fused, power_of_two, product
from dspark_compiler.schedules.cuda.memory import load_float, store_float, store_pair
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier
from dspark_compiler.schedules.tir import Buffer, Expr, when

_CELL = WARP * 4  # bytes of a register of a warp


def lines_bytes(value_dim: int, lines: int) -> int:
    """Shared memory a tile takes."""
    return lines * _registers(value_dim) * _CELL


def _registers(value_dim: int) -> int:
    """A thread's sums, two maxima and two totals."""
    return padded(value_dim) // 2 + 4


def add_lines(
    warp: WarpTile,
    scratch: tuple[Buffer, Expr],
    line: tuple[Expr, int],
    target: tuple[Buffer, int, Expr, Expr, int],
) -> None:
    """Writes a tile's sums relative to the lines' common maximum, the maximum and the total; all warps take part.

    Args:
        warp: what the calling warp has, finished.
        scratch: shared memory and where the tile's part of it starts.
        line: number of the warp in its tile, and how many there are; each writes a share of the columns.
        target: float32 buffer, where its pairs (maximum, total) start, its row of query row 0, the tile's first query
            row, and how many rows there are.
    """
    memory, start = scratch
    number, lines = line
    count = _registers(warp.value_dim)
    own = start + number * (count * _CELL) + warp.lane * 4
    held = [
        *((warp.sums, i) for i in range(warp.outputs * 4)),
        *((b, i) for b in (warp.maxima, warp.totals) for i in (0, 1)),
    ]
    for register, (source, i) in enumerate(held):
        store_float(address(memory, own + register * _CELL), source[i])
    barrier()

    def cell(of: int, register: Expr) -> Expr:
        return load_float(address(memory, start + of * (count * _CELL) + register * _CELL + warp.lane * 4))

    buffer, pairs, row, first, rows = target
    rate = T.float32(warp.rate)
    for half in range(2):
        maxima = [T.Bind(cell(i, warp.outputs * 4 + half)) for i in range(lines)]
        peak = T.Bind(reduce(T.max, maxima))
        known = T.Bind(T.Select(peak == T.float32(HIDDEN), T.float32(0.0), peak))
        weights = [T.Bind(power_of_two((maximum - known) * rate)) for maximum in maxima]

        def weighted(register: Expr, weights: list[Expr] = weights) -> Expr:
            total = product(weights[0], cell(0, register))
            for i in range(1, lines):
                total = fused(weights[i], cell(i, register), total)
            return T.Bind(total)

        m = first + warp.lane // 4 + 8 * half
        with when(m < rows):
            for turn in range(-(-warp.outputs // lines)):
                output = T.Bind(turn * lines + number)
                d = output * 8 + warp.lane % 4 * 2
                with when(d < warp.value_dim):
                    low, high = (weighted(output * 4 + half * 2 + i) for i in range(2))
                    store_pair(address(buffer, (row + m) * warp.value_dim + d), low, high)
            with when(T.And(number == 0, warp.lane % 4 == 0)):
                total = weighted(T.int32(warp.outputs * 4 + 2 + half))
                store_pair(address(buffer, pairs + (row + m) * 2), peak, total)
