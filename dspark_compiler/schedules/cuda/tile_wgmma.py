"""x @ W.T for many rows on Hopper: blocks that stay, one warpgroup that loads and others that multiply.

A block takes tile after tile of y. Its last warpgroup keeps a ring of stages filled, each 64 columns of x (cp.async,
in the 128-byte swizzle wgmma reads) and of W (bulk copies of whole packed tiles); the others multiply 64 rows each and
give a stage back once its products are done. The ring runs on over tiles, so that the next one's loads go under this
one's stores. Rows of tiles run fastest: blocks at work together read the same few tiles of W.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda import async_copy, wgmma
from dspark_compiler.schedules.cuda.fragments import TILE, TILE_DEPTH, TILE_ROWS
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, launch, registers, shared
from dspark_compiler.schedules.cuda.tile_mma import weight_tile
from dspark_compiler.schedules.cuda.tile_output import TileOutput
from dspark_compiler.schedules.cuda.tile_schedule import MULTIPROCESSORS, TileSchedule
from dspark_compiler.schedules.tir import Buffer, Expr, when

_DEPTH = 64  # columns of a stage: 128 bytes of a row, the width of the swizzle
_TILE_BYTES = 2 * TILE


@dataclass(frozen=True)
class _Ring:
    """Shared memory: stages of x then W, behind them the barriers that tell them full or empty.

    The swizzle wants x at multiples of 1 KB: the block's only shared array begins at one.
    """

    memory: Buffer
    cut: TileSchedule

    @property
    def stage_bytes(self) -> int:
        return (self.cut.rows + self.cut.features) * 2 * _DEPTH

    def x(self, step: Expr, row: Expr) -> Expr:
        """Pointer to a row of the stage used in the ring's step."""
        return address(self.memory, step % self.cut.stages * self.stage_bytes + row * 2 * _DEPTH)

    def w(self, step: Expr, tile: Expr) -> Expr:
        """Pointer to a tile of W."""
        start = step % self.cut.stages * self.stage_bytes + self.cut.rows * 2 * _DEPTH
        return address(self.memory, start + tile * _TILE_BYTES)

    def full(self, step: Expr) -> Expr:
        """The barrier of loads done."""
        return address(self.memory, self.cut.stages * self.stage_bytes + step % self.cut.stages * 8)

    def empty(self, step: Expr) -> Expr:
        """The barrier of products done."""
        return address(self.memory, self.cut.stages * (self.stage_bytes + 8) + step % self.cut.stages * 8)

    def turn(self, step: Expr) -> Expr:
        """Parity of the times the ring went round."""
        return step // self.cut.stages % 2


def emit_wgmma_tiles(x: Buffer, w: Buffer, rest: Sequence[Buffer], output: TileOutput, cut: TileSchedule) -> None:
    """Emits the launch for x [M, K], packed w and the output's buffers."""
    columns = cut.features // 2 if output.activation else cut.features
    row_tiles = -(-output.work.rows // cut.rows)
    tiles = row_tiles * -(-output.features // columns)
    blocks = min(tiles, MULTIPROCESSORS)
    multipliers = cut.rows // wgmma.GROUP_ROWS * wgmma.WARPGROUP
    steps = -(-output.work.depth // _DEPTH)

    with launch((blocks,), multipliers + wgmma.WARPGROUP) as (block, thread):
        memory = shared(cut.stages * ((cut.rows + cut.features) * 2 * _DEPTH + 16), "uint8", dynamic=True)
        ring = _Ring(memory, cut)
        with when(thread < cut.stages):
            async_copy.init_barrier(ring.full(thread), wgmma.WARPGROUP)
            async_copy.init_barrier(ring.empty(thread), multipliers // WARP)
        barrier()
        with T.If(thread < multipliers):
            with T.Then(), T.serial(0, -(-tiles // blocks)) as turn:
                tile = turn * blocks + block
                with when(tile < tiles):
                    sums = registers(cut.features // 2)
                    _multiply(sums, ring, thread, turn * steps, output.work.depth, str(x.dtype))
                    row = tile % row_tiles * cut.rows + thread // WARP * 16 + thread % WARP // 4
                    output.store(sums, rest, row, tile // row_tiles * columns + 2 * (thread % 4), columns)
            with T.Else():
                loader = thread - multipliers
                with T.serial(0, -(-tiles // blocks)) as turn:
                    tile = turn * blocks + block
                    with when(tile < tiles), T.serial(0, steps) as k:
                        _load(ring, loader, turn * steps + k, k, tile, row_tiles, x, w, output)
                # The last stage's copies are still to be told of.
                # (Not as a floor of a difference: TVM 0.27 simplifies those of (c - i) // n wrongly.)
                turns = tiles // blocks + T.Select(block < tiles % blocks, 1, 0)
                last = turns * steps - 1
                async_copy.wait_copies(0)
                async_copy.publish_writes()
                async_copy.arrive(ring.full(last))


def _load(
    ring: _Ring, loader: Expr, step: Expr, k: Expr, tile: Expr, row_tiles: int, x: Buffer, w: Buffer, output: TileOutput
) -> None:
    """Starts loading columns [64k, 64k + 64) of a tile's operands; tells the step before full."""
    cut, work = ring.cut, output.work
    async_copy.wait_phase(ring.empty(step), 1 - ring.turn(step))
    # W: a thread a packed tile. The depth's last stage may have only one tile along K, the last features fewer.
    count, deep = cut.features // TILE_ROWS, -(-work.depth // TILE_DEPTH)
    source, valid = weight_tile(output, cut, tile // row_tiles, loader % count)
    part = k * 2 + loader // count
    with when(T.And(T.And(loader < 2 * count, part < deep), valid)):
        async_copy.expect_bytes(ring.full(step), T.int32(_TILE_BYTES))
        async_copy.copy_bulk(ring.w(step, loader), address(w, source, part, 0), _TILE_BYTES, ring.full(step))
    octet, first = loader % 8, loader // 8
    place = T.bitwise_xor(octet, first % 8) * 16
    for start in range(0, cut.rows, wgmma.WARPGROUP // 8):
        row, column = tile % row_tiles * cut.rows + first + start, k * _DEPTH + octet * 8
        target = address(ring.memory, step % cut.stages * ring.stage_bytes + (first + start) * 2 * _DEPTH + place)
        async_copy.copy16(target, address(x, row, column), T.And(row < work.rows, column < work.depth))
    async_copy.commit_copies()
    with when(step > 0):
        async_copy.wait_copies(1)
        async_copy.publish_writes()
        async_copy.arrive(ring.full(step - 1))


def _multiply(sums: Buffer, ring: _Ring, thread: Expr, first: Expr, depth: int, dtype: str) -> None:
    """Leaves x @ w.T of a warpgroup in ``sums``, over a tile's whole depth, from the ring's step ``first`` on."""
    columns = ring.cut.features
    group = thread // wgmma.WARPGROUP * wgmma.GROUP_ROWS

    def stage(step: Expr, k: Expr, products: int) -> None:
        async_copy.wait_phase(ring.full(step), ring.turn(step))
        x, w = ring.x(step, group), ring.w(step, 0)
        wgmma.multiply_stage(sums, x, w, dtype, columns=columns, steps=products, accumulate=k)

    def give_back(step: Expr) -> None:
        with when(thread % WARP == 0):
            async_copy.arrive(ring.empty(step))

    # What x has beyond the depth is zero in shared memory, and packed W up to a multiple of 32; more is not there.
    whole, tail = depth // _DEPTH, -(-(depth % _DEPTH) // TILE_DEPTH) * 2
    with T.serial(0, whole) as k:
        stage(first + k, k, 4)
        wgmma.wait_products(sums, 1)
        with when(k > 0):
            give_back(first + k - 1)
    if tail:
        stage(first + whole, T.int32(whole), tail)
        if whole:
            wgmma.wait_products(sums, 1)
            give_back(first + whole - 1)
    wgmma.wait_products(sums, 0)
    give_back(first + (whole if tail else whole - 1))
