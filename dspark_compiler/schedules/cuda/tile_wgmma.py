"""x @ W.T for many rows on Hopper: blocks that stay, one thread that loads and warpgroups that multiply.

A block takes tile after tile of y. A thread of its last warpgroup keeps a ring of stages filled (tile_ring.py); the
other warpgroups multiply 64 rows each and give a stage back once its products are done. The ring runs on over tiles, so
that the next one's loads go under this one's stores. Rows of tiles run fastest: blocks at work together read the same
few tiles of W.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda import wgmma
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.launch_bounds import bounded_registers
from dspark_compiler.schedules.cuda.threads import WARP, barrier, launch, registers, shared
from dspark_compiler.schedules.cuda.tile_output import TileOutput
from dspark_compiler.schedules.cuda.tile_ring import STAGE_DEPTH, Ring, TileLoads, ring_bytes
from dspark_compiler.schedules.cuda.tile_schedule import MULTIPROCESSORS, TileSchedule
from dspark_compiler.schedules.cuda.tile_slabs import Slabs, slab_bytes
from dspark_compiler.schedules.tir import Buffer, Expr, when

# Of a thread, where two warpgroups and more multiply; a single one has enough.
_LOADER_REGISTERS, _MULTIPLIER_REGISTERS = 40, 232


def emit_wgmma_tiles(x: Buffer, w: Buffer, rest: Sequence[Buffer], output: TileOutput, cut: TileSchedule) -> None:
    """Emits the launch for x [M, K], packed w and the output's buffers."""
    columns = cut.features // 2 if output.activation else cut.features
    below = -(-output.work.rows // cut.rows)
    tiles = below * -(-output.features // columns)
    blocks = min(tiles, MULTIPROCESSORS)
    multipliers = cut.rows // wgmma.GROUP_ROWS * wgmma.WARPGROUP
    crowded = multipliers > wgmma.WARPGROUP
    steps = -(-output.work.depth // STAGE_DEPTH)
    loads, stores = TileLoads.of(x, w, output, cut), Slabs.map(output, rest[-1], columns)

    with launch((blocks,), multipliers + wgmma.WARPGROUP) as (block, thread), bounded_registers():
        slabs_at = ring_bytes(cut)
        memory = shared(slabs_at + slab_bytes(cut.rows), "uint8", dynamic=True)
        ring = Ring(memory, cut)
        slabs = None if stores is None else Slabs(stores, output, memory, slabs_at)
        with when(thread < cut.stages):
            ring.init(thread, multipliers // WARP)
        barrier()
        await_previous()
        release_next()

        @contextmanager
        def every_tile() -> Iterator[tuple[Expr, Expr, Expr]]:
            """The ring's first step, and the tile's row and column."""
            with T.serial(0, -(-tiles // blocks)) as turn:
                tile = turn * blocks + block
                with when(tile < tiles):
                    yield turn * steps, tile % below * cut.rows, tile // below * columns

        with T.If(thread < multipliers):
            with T.Then():
                if crowded:
                    wgmma.set_registers(_MULTIPLIER_REGISTERS, more=True)
                with every_tile() as (first, row, column):
                    sums = registers(cut.features // 2)
                    _multiply(sums, ring, thread, first, steps, str(x.dtype))
                    if slabs is not None:
                        slabs.store(sums, rest, thread, row, column, columns)
                    else:
                        row, column = row + thread // WARP * 16 + thread % WARP // 4, column + 2 * (thread % 4)
                        (output.store_wide if output.is_wide else output.store)(sums, rest, row, column, columns)
                if slabs is not None:
                    slabs.finish(thread)
            with T.Else():
                if crowded:
                    wgmma.set_registers(_LOADER_REGISTERS, more=False)
                with when(thread == multipliers), every_tile() as (first, row, column), T.serial(0, steps) as k:
                    loads.start(ring, first + k, k, row, column)


def _multiply(sums: Buffer, ring: Ring, thread: Expr, first: Expr, steps: int, dtype: str) -> None:
    """Leaves x @ w.T of a warpgroup in ``sums``, over a tile's whole depth, from the ring's step ``first`` on."""
    group = thread // wgmma.WARPGROUP * wgmma.GROUP_ROWS
    with T.serial(0, steps) as k:
        step = first + k
        ring.wait(step)
        x, w = ring.x(step, group), ring.w(step, T.int32(0))
        wgmma.multiply_stage(sums, x, w, dtype, columns=ring.cut.features, accumulate=k)
        wgmma.wait_products(sums, 1)
        with when(k > 0):
            ring.give_back(step - 1, thread)
    wgmma.wait_products(sums, 0)
    ring.give_back(first + (steps - 1), thread)
