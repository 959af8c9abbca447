"""The sums of a streaming linear kernel: W from memory straight into tensor core registers, every byte of it once.

A warp takes W as the wide operand of mma.m16n8k16 (A, 16 features) and x as the narrow one (B, 8 rows), so that one row
of x costs what eight do: the time of W's way from memory. It keeps the tiles of several steps under way in registers.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.mma import multiply_add
from dspark_compiler.schedules.cuda.stream_inputs import Inputs
from dspark_compiler.schedules.cuda.threads import address, device, registers, run
from dspark_compiler.schedules.tir import Buffer, Expr, when

_TILE_WORDS = 8  # uint32 of a tile in each lane
_X_WORDS = 4  # uint32 of a group's 32 columns in each lane


@dataclass(frozen=True)
class Worker:
    """One of the warps that share the depth of a block's stripes, over the blocks of a cluster."""

    index: Expr
    count: int
    lane: Expr


def stream_tiles(
    w: Buffer, stripes: Sequence[Expr], inputs: Callable[[], Inputs], worker: Worker, ahead: int, dtype: str
) -> list[list[Buffer]]:
    """This worker's part of x @ W.T: for each stripe of 16 features and each 8 rows of x a C fragment, float32[4].

    Tile i of a stripe is the (i mod count)-th worker's, in order. The first loads of W go out before
    ``await_previous``, which ``inputs`` is called after.
    """
    tiles = int(w.shape[1])
    whole, rest = divmod(tiles, worker.count)  # steps of every worker, and workers with one more
    steps = whole + (rest > 0)
    slots = min(ahead, steps)
    weights = registers(slots * len(stripes) * _TILE_WORDS, "uint32")
    row, octet = worker.lane // 4, worker.lane % 4

    def having(step: int) -> AbstractContextManager[None]:
        """Inside are only the workers that have this step."""
        return when(worker.index < rest) if step == whole else nullcontext()

    def load_weights(step: Expr, slot: int) -> None:
        tile = step * worker.count + worker.index
        for j, stripe in enumerate(stripes):
            source = address(w, stripe, tile, row * 32 + T.bitwise_xor(octet, row // 2) * 8)
            load_tile(weights, (slot * len(stripes) + j) * _TILE_WORDS, source)

    for step in range(slots):
        with having(step):
            load_weights(step, step)
    release_next()
    await_previous()
    x = inputs()
    places = 1 if x.near else slots
    fragments = registers(places * x.groups * _X_WORDS, "uint32")
    sums = [[registers(4) for _ in range(x.groups)] for _ in stripes]
    for acc in (acc for column in sums for acc in column):
        for i in range(4):
            T.buffer_store(acc, T.float32(0.0), [i])

    def load_inputs(step: Expr, slot: int) -> None:
        for group in range(x.groups):
            at = (slot % places * x.groups + group) * _X_WORDS
            x.load(fragments, at, step * worker.count + worker.index, group, row, octet)

    def multiply(step: Expr, slot: int) -> None:
        if x.near:
            load_inputs(step, slot)
        for half in range(2):
            for j, column in enumerate(sums):
                for group, acc in enumerate(column):
                    a = (slot * len(stripes) + j) * _TILE_WORDS + half * 4
                    b = (slot % places * x.groups + group) * _X_WORDS + half * 2
                    multiply_add(acc, weights, fragments, dtype, at=(0, a, b))

    def load(step: Expr, slot: int) -> None:
        load_weights(step, slot)
        if not x.near:
            load_inputs(step, slot)

    if not x.near:
        for step in range(slots):
            with having(step):
                load_inputs(step, step)
    rounds = max(whole // slots - 1, 0)
    if rounds:
        with T.serial(0, rounds) as turn:
            for slot in range(slots):
                multiply(turn * slots + slot, slot)
                load((turn + 1) * slots + slot, slot)
    for step in range(rounds * slots, steps):
        with having(step):
            multiply(step, step % slots)
        if step + slots < steps:
            with having(step + slots):
                load(step + slots, step % slots)
    return sums


def load_tile(target: Buffer, at: int, pointer: Expr) -> None:
    """Loads a lane's two pieces of a tile that nobody will read again: two A fragments, target[at : at+8], uint32."""
    source = """
__device__ __forceinline__ void dspark_load_tile(unsigned* d, const void* p) {
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
    : "=r"(d[0]), "=r"(d[2]), "=r"(d[4]), "=r"(d[6]) : "l"(p));
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4+512];"
    : "=r"(d[1]), "=r"(d[3]), "=r"(d[5]), "=r"(d[7]) : "l"(p));
}
"""
    run(device("dspark_load_tile", address(target, at), pointer, source=source))
