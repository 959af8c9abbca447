"""Where a streaming linear kernel takes x from: memory, or shared memory that a block has filled."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.async_copy import commit_copies, copy16, wait_copies
from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH
from dspark_compiler.schedules.cuda.memory_reads import load_written
from dspark_compiler.schedules.cuda.mma import load_shared
from dspark_compiler.schedules.cuda.threads import address, barrier, device, run, shared
from dspark_compiler.schedules.tir import Buffer, Expr, when

GROUP = 8  # rows of x in one product, the narrow operand's width
X_WORDS = 4  # uint32 of a group's 32 columns in each lane
OCTETS = TILE_DEPTH // 8  # 16-byte pieces of a row in a tile
_STATIC = 48 * 1024  # bytes of shared memory a kernel has without asking
_MOST = 208 * 1024  # bytes of it that x may take
_OTHER = 14 * 1024  # bytes that the rest of a kernel may use

# (where to, first element, tile of the depth, group of rows, row of the group, octet of the tile)
Load = Callable[[Buffer, int, Expr, int, Expr, Expr], None]


@dataclass(frozen=True)
class Inputs:
    """x [rows, depth] of 2-byte elements as B fragments: 16 bytes of a row to a lane."""

    rows: int
    depth: int
    load: Load
    near: bool  # so near that nothing is won by asking early

    @property
    def groups(self) -> int:
        """Products that each tile of W takes part in."""
        return -(-self.rows // GROUP)


def written_inputs(x: Buffer, padded: int) -> Inputs:
    """What an earlier kernel wrote, read where it lies; W's tiles reach to column ``padded``."""
    rows, depth = (int(extent) for extent in x.shape)

    def load(target: Buffer, at: int, tile: Expr, group: int, row: Expr, octet: Expr) -> None:
        column = tile * TILE_DEPTH + octet * 8
        # W is zero where its last tile reaches past the depth: there x may be anything finite.
        column = column if depth == padded else T.min(column, depth - 8)
        load_written(target, at, address(x, group * GROUP + _within(row, group, rows), column))

    return Inputs(rows, depth, load, near=False)


def staged_inputs(x: Buffer, padded: int, thread: Expr, threads: int) -> Inputs:
    """The same, copied to shared memory first.

    The compiler moves loads of x down to where they are needed, and each waits for the L2 there: where a step takes
    long anyway, as with quantized weights, one wait for all of a short x is less. For more rows it is more.
    """
    rows, depth = (int(extent) for extent in x.shape)
    staged = StagedRows(rows, padded)
    octets = depth // 8
    for start in range(0, rows * octets, threads):
        piece = start + thread
        with when(piece < rows * octets) if start + threads > rows * octets else nullcontext():
            row, octet = piece // octets, piece % octets
            target = staged.address(octet // OCTETS, row, octet % OCTETS, 0)
            copy16(target, address(x, row, octet * 8), tvm.tirx.const(True, "bool"))
    commit_copies()
    staged.clear(depth, thread, threads)
    wait_copies(0)
    barrier()
    return staged.inputs(depth)


class StagedRows:
    """x of 2-byte elements in shared memory, in the order fragments are read in: [tile][row][octet][16 bytes].

    Tiles are of 32 columns, up to column ``padded``.
    """

    def __init__(self, rows: int, padded: int) -> None:
        self._rows, self._padded, size = rows, padded, 2 * rows * padded
        if size > _MOST:
            raise ValueError(f"{rows} rows of {padded} elements do not fit shared memory")
        # TVM asks CUDA for more than it has without asking only where the dynamic part alone is. The type is bytes
        # because all kernels of a module that have such memory must agree on one.
        self._memory = shared(max(size, _STATIC) if size > _STATIC - _OTHER else size, "uint8", dynamic=True)

    def address(self, tile: Expr, row: Expr, octet: Expr, byte: Expr) -> Expr:
        """Pointer to a byte of an octet."""
        return address(self._memory, ((tile * self._rows + row) * OCTETS + octet) * 16 + byte)

    def clear(self, depth: int, thread: Expr, threads: int) -> None:
        """Zeros past the depth."""
        for column in range(depth, self._padded, 8):
            for start in range(0, self._rows * 4, threads):
                word = start + thread
                with when(word < self._rows * 4):
                    target = self.address(column // TILE_DEPTH, word // 4, column % TILE_DEPTH // 8, word % 4 * 4)
                    _store_zero(target)

    def inputs(self, depth: int) -> Inputs:
        """Reads it, once it is there."""

        def load(target: Buffer, at: int, tile: Expr, group: int, row: Expr, octet: Expr) -> None:
            load_shared(target, at, self.address(tile, group * GROUP + _within(row, group, self._rows), octet, 0))

        return Inputs(self._rows, depth, load, near=True)


def _within(row: Expr, group: int, rows: int) -> Expr:
    """The row of the group, or its last one again, whose products nobody stores."""
    last = min(rows - group * GROUP, GROUP) - 1
    return row if last == GROUP - 1 else T.min(row, last)


def _store_zero(target: Expr) -> None:
    """Stores four bytes of zero."""
    source = """
__device__ __forceinline__ void dspark_store_zero(void* d) { *(unsigned*)d = 0; }
"""
    run(device("dspark_store_zero", target, source=source))
