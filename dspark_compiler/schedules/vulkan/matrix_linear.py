"""Linears of many rows by cooperative matrices: tiles of x and of the weight in shared memory, sums in matrices.

x is rounded to float16 first (rounded_rows.py), weights on their way, whatever they are stored as (weight_pieces.py).
A work group makes a tile of y, the depth going by in steps of 64: while one is multiplied, the next are on their way
from memory. Sums leave through shared memory, since nothing says which invocation holds which. Past an edge zeros are
read, or the last row once more, which nobody stores.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.activations import ACTIVATIONS
from dspark_compiler.schedules.simt.stored import copy
from dspark_compiler.schedules.simt.stream_linear import form_of
from dspark_compiler.schedules.simt.stream_output import Options
from dspark_compiler.schedules.simt.threads import barrier, launch, registers, shared
from dspark_compiler.schedules.simt.weight_pieces import PIECE, WeightPieces
from dspark_compiler.schedules.tir import Buffer, Expr, when
from dspark_compiler.schedules.vulkan.matrices import SIDE, SUBGROUP, Matrices

STEP = 64  # depth of a step
_LINE = STEP + 8  # of a tile: rows begin in different banks
_LINES = STEP // PIECE  # pieces of a row's step
_OWN = SIDE * SIDE // SUBGROUP  # sums of a matrix that an invocation brings out, side by side
_VECTOR = 4
_BYTES, _SUM_BYTES = 2, 4


@dataclass(frozen=True)
class MatrixTile:
    """What a work group makes: rows of x by rows of the weight, ``down`` times ``across`` subgroups sharing them.

    ``ahead`` steps are on their way in registers.
    """

    rows: int
    features: int
    down: int
    across: int
    ahead: int = 1

    @property
    def threads(self) -> int:
        """Of the work group."""
        return SUBGROUP * self.down * self.across

    @property
    def shared_bytes(self) -> int:
        """Memory it takes on the chip."""
        sums = self.down * self.across * SIDE * SIDE
        return (self.rows + self.features) * _LINE * _BYTES + sums * _SUM_BYTES


def emit_matrix_linear(
    work: LinearWorkload, tile: MatrixTile, options: Options, of: dict[str, Buffer], matrices: Matrices
) -> None:
    """The launch, over the buffers of tile_linear by name and those of rounded_rows: "rounded" and "row_scale"."""
    _Tile(work, tile, options, of, matrices).emit()


class _Tile:
    """A work group a tile of y. Gated, half its rows of the weight are of each half."""

    def __init__(
        self, work: LinearWorkload, tile: MatrixTile, options: Options, of: dict[str, Buffer], matrices: Matrices
    ) -> None:
        self._work, self._tile, self._options, self._of, self._matrices = work, tile, options, of, matrices
        self._features = int(of["y"].shape[1])
        self._halves = 2 if options.activation else 1
        self._wide = tile.features // self._halves  # features of y
        self._i = tile.rows // tile.down // SIDE  # matrices that a subgroup makes, down
        self._j = self._wide // tile.across // SIDE  # and across
        assert self._i
        assert self._j

    def emit(self) -> None:
        """The whole launch."""
        tile, steps = self._tile, -(-self._work.depth // STEP)
        grid = (-(-self._features // self._wide), -(-self._work.rows // tile.rows))
        ahead = min(tile.ahead, steps)
        with launch(grid, tile.threads) as (column, row, thread):
            rows, columns = T.Bind(row * tile.rows), T.Bind(column * self._wide)
            x_tile = shared(tile.rows * _LINE, "float16")
            w_tiles = [shared(self._wide * _LINE, "float16") for _ in range(self._halves)]
            made = shared(tile.down * tile.across * SIDE * SIDE)
            x_held = registers((ahead, tile.rows * _LINES // tile.threads, PIECE), "float16")
            turns = self._wide * _LINES // tile.threads
            weight = WeightPieces(form_of(self._work), "float16", self._of, (ahead, self._halves, turns))
            sums = self._matrices.sums(self._halves * self._i * self._j)
            subgroup = T.Bind(thread // SUBGROUP)
            down = T.Bind(subgroup // tile.across * (self._i * SIDE))
            across = T.Bind(subgroup % tile.across * (self._j * SIDE))

            def bring(place: int, step: Expr) -> None:
                self._bring_x(x_held, place, rows, step, thread)
                for half, turn, number, line in self._pieces(thread, turns):
                    feature = T.Bind(T.min(columns + number, self._features - 1) + half * self._features)
                    weight.bring((place, half, turn), feature, step, line)

            def multiply(place: int, step: Expr) -> None:
                barrier()  # the step before has been read
                self._put_x(x_tile, x_held, place, thread)
                for half, turn, number, line in self._pieces(thread, turns):
                    weight.put((place, half, turn), w_tiles[half], number * _LINE + line * PIECE)
                barrier()
                with when(step + ahead < steps):
                    bring(place, T.Bind(step + ahead))
                self._multiply(sums, x_tile, w_tiles, down, across)

            for place in range(ahead):
                bring(place, T.int32(place))
            with T.serial(0, -(-steps // ahead)) as turn:
                for place in range(ahead):
                    step = T.Bind(turn * ahead + place)
                    with when(step < steps) if steps % ahead else nullcontext():
                        multiply(place, step)
            self._store(sums, weight, made, subgroup, rows + down, columns + across, thread)

    def _pieces(self, thread: Expr, turns: int) -> Iterator[tuple[int, int, Expr, Expr]]:
        """Those of the weight that a thread brings a step: half and turn, row of the tile, place in the row."""
        line = T.Bind(thread % _LINES)
        for half in range(self._halves):
            for turn in range(turns):
                yield half, turn, T.Bind((thread + turn * self._tile.threads) // _LINES), line

    def _bring_x(self, held: Buffer, place: int, rows: Expr, step: Expr, thread: Expr) -> None:
        column = T.Bind(step * STEP + thread % _LINES * PIECE)
        for turn in range(int(held.shape[1])):
            number = (thread + turn * self._tile.threads) // _LINES
            row = T.Bind(T.min(rows + number, self._work.rows - 1))
            copy(held, (place, turn, 0), self._of["rounded"], (row, column), PIECE)

    def _put_x(self, x_tile: Buffer, held: Buffer, place: int, thread: Expr) -> None:
        line = T.Bind(thread % _LINES)
        for turn in range(int(held.shape[1])):
            number = T.Bind((thread + turn * self._tile.threads) // _LINES)
            copy(x_tile, (number * _LINE + line * PIECE,), held, (place, turn, T.int32(0)), PIECE)

    def _multiply(self, sums: Buffer, x_tile: Buffer, w_tiles: list[Buffer], down: Expr, across: Expr) -> None:
        """A step's products."""
        left, right = self._matrices.left(self._i), self._matrices.right(1)
        for k in range(0, STEP, SIDE):
            for i in range(self._i):
                self._matrices.load(left, i, x_tile, (down + i * SIDE) * _LINE + k, _LINE)
            for half, tile in enumerate(w_tiles):
                for j in range(self._j):
                    self._matrices.load(right, 0, tile, (across + j * SIDE) * _LINE + k, _LINE)
                    for i in range(self._i):
                        self._matrices.multiply(sums, self._number(half, i, j), left, i, right, 0)

    def _number(self, half: int, i: int, j: int) -> int:
        return (half * self._i + i) * self._j + j

    def _store(
        self,
        sums: Buffer,
        weight: WeightPieces,
        made: Buffer,
        subgroup: Expr,
        rows: Expr,
        columns: Expr,
        thread: Expr,
    ) -> None:
        lane, place = T.Bind(thread % SUBGROUP), T.Bind(subgroup * (SIDE * SIDE))
        number, first = T.Bind(lane * _OWN // SIDE), T.Bind(lane * _OWN % SIDE)
        held = registers((self._halves, _OWN))
        for i in range(self._i):
            row = T.Bind(rows + i * SIDE + number)
            for j in range(self._j):
                for half in range(self._halves):
                    self._matrices.store(made, place, SIDE, sums, self._number(half, i, j))
                    self._matrices.meet()
                    for e in range(0, _OWN, _VECTOR):
                        copy(held, (half, e), made, (place + number * SIDE + first + e,), _VECTOR)
                    self._matrices.meet()
                with when(row < self._work.rows):
                    self._finish(held, weight, row, T.Bind(columns + j * SIDE + first))

    def _finish(self, held: Buffer, weight: WeightPieces, row: Expr, first: Expr) -> None:
        """An invocation's sums as numbers of y."""
        options, of, edges = self._options, self._of, self._features % self._wide != 0
        scale = T.Bind(of["row_scale"][row])
        whole = self._features % _VECTOR == 0
        for e in range(0, _OWN, _VECTOR if whole else 1):
            with when(first + e < self._features) if edges else nullcontext():
                for n in range(_VECTOR if whole else 1):
                    feature = T.Bind(first + e + n)
                    value = weight.scaled(held[0, e + n] * scale, feature)
                    if options.activation is not None:
                        gated = weight.scaled(held[1, e + n] * scale, feature + self._features)
                        value = ACTIVATIONS[options.activation](T.Bind(value)) * gated
                    if options.bias:
                        value = value + of["bias"][feature]
                    if options.residual:
                        value = value + of["residual"][row, feature]
                    T.buffer_store(held, value, [0, e + n])
                if whole:
                    copy(of["y"], (row, first + e), held, (0, e), _VECTOR)
                else:
                    T.buffer_store(of["y"], held[0, e], [row, first + e])
