"""Linears of many rows by matrix instructions: tiles of x and of the weight in local memory, sums in registers.

A work group makes 64 features of 64 rows of x, the depth going by in steps of 64: while one is multiplied, the next is
on its way from memory. x is rounded to the type that weights without codes have, which codes are decoded to
(weight_pieces.py). The weight is the left factor, so that a lane has neighbouring features of one row. What lies past
an edge is read as zero.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import tvm
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.rocm.architectures import Architecture
from dspark_compiler.schedules.rocm.matrix_instructions import SIDE, MatrixInstruction, matrix_instruction
from dspark_compiler.schedules.simt.activations import ACTIVATIONS
from dspark_compiler.schedules.simt.stored import STORED, narrow
from dspark_compiler.schedules.simt.stream_linear import form_of
from dspark_compiler.schedules.simt.stream_output import PLAIN, Options
from dspark_compiler.schedules.simt.threads import barrier, launch, registers, shared
from dspark_compiler.schedules.simt.tile_linear import tile_linear
from dspark_compiler.schedules.simt.weight_pieces import PIECE, WeightPieces, zeroed
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

Template = Callable[..., tvm.tirx.PrimFunc]

_TILE, _STEP = 64, 64  # rows and features of a tile, depth of a step
_THREADS = 256
_X_PIECE = 4  # numbers a thread brings at once
_LINE = _STEP + 8  # of a tile, which is flat, or TVM cuts the rest off: rows begin in different banks
_LINES = _STEP // PIECE  # pieces of a row's step
_TURNS = _TILE * _LINES // _THREADS  # pieces of a tile that a thread brings
_DOWN = 2  # fragments of features a wave makes


def matrix_tile(arch: Architecture, dtype: str) -> Template:
    """``tile_linear`` for an architecture: by matrix instructions, but where weights are stored as float32."""
    if dtype == "float32":
        return tile_linear
    instruction, stored = matrix_instruction(arch), STORED[dtype]

    def template(name: str, work: LinearWorkload, options: Options = PLAIN) -> tvm.tirx.PrimFunc:
        return matrix_linear(name, work, instruction, stored, options)

    return template


@made_once
def matrix_linear(
    name: str, work: LinearWorkload, instruction: MatrixInstruction, stored: str, options: Options = PLAIN
) -> tvm.tirx.PrimFunc:
    """Kernel for y = x @ W.T [+ bias] [+ residual], or act(gate) * up of its halves; arguments as tile_linear's.

    ``stored`` is what is multiplied, float16 or uint16 for bfloat16's bits.
    """
    assert options.norm_eps is None
    features = work.features // 2 if options.activation else work.features
    args = [
        Arg("x", (work.rows, work.depth)),
        *form_of(work).args(),
        *([Arg("bias", (features,))] if options.bias else []),
        *([Arg("residual", (work.rows, features))] if options.residual else []),
        Arg("y", (work.rows, features)),
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        _Tile(work, instruction, stored, options, of).emit()

    return tag(kernel(name, args, body), work)


class _Tile:
    """The launch: a work group a tile of y. Gated, it makes a tile of each half."""

    def __init__(
        self,
        work: LinearWorkload,
        instruction: MatrixInstruction,
        stored: str,
        options: Options,
        of: dict[str, Buffer],
    ) -> None:
        self._work, self._options, self._of, self._features = work, options, of, int(of["y"].shape[1])
        self._instruction, self._stored = instruction, stored
        self._halves = 2 if options.activation else 1
        self._across = _THREADS // instruction.lanes * SIDE // _TILE * _DOWN  # waves beside each other
        self._fragments = _TILE // SIDE // self._across  # of rows of x that a wave makes

    def emit(self) -> None:
        """The whole launch."""
        steps = -(-self._work.depth // _STEP)
        grid = (-(-self._features // _TILE), -(-self._work.rows // _TILE))
        with launch(grid, _THREADS) as (column, row, thread):
            rows, columns = T.Bind(row * _TILE), T.Bind(column * _TILE)
            x_tile = shared(_TILE * _LINE, self._stored)
            w_tiles = [shared(_TILE * _LINE, self._stored) for _ in range(self._halves)]
            x_held = registers((_TILE * _STEP // _THREADS // _X_PIECE, _X_PIECE))
            weight = WeightPieces(form_of(self._work), self._stored, self._of, (self._halves, _TURNS))
            lanes, made = self._instruction.lanes, self._instruction.made
            sums = registers((self._halves, _DOWN, self._fragments), f"float32x{made}")
            for index in self._indices():
                T.buffer_store(sums, T.broadcast(T.float32(0.0), made), list(index))
            lane, wave = T.Bind(thread % lanes), T.Bind(thread // lanes)
            down = T.Bind(wave // self._across * (_DOWN * SIDE))
            across = T.Bind(wave % self._across * (self._fragments * SIDE))

            def bring(step: Expr) -> None:
                self._bring_x(x_held, rows, T.Bind(step * _STEP), thread)
                self._bring_w(weight, columns, step, thread)

            bring(T.int32(0))
            with T.serial(0, steps) as step:
                barrier()  # the step before has been read
                self._put_x(x_tile, x_held, thread)
                for half, turn, number, line in _pieces(self._halves, thread):
                    weight.put((half, turn), w_tiles[half], number * _LINE + line * PIECE)
                barrier()
                with when(step < steps - 1):
                    bring(T.Bind(step + 1))
                self._multiply(sums, x_tile, w_tiles, (down, across), lane, thread)
            self._store(sums, weight, rows + across, columns + down, lane)

    def _indices(self) -> list[tuple[int, int, int]]:
        """Of the sums: half, fragment down, fragment across."""
        return [(h, i, j) for h in range(self._halves) for i in range(_DOWN) for j in range(self._fragments)]

    def _bring_x(self, held: Buffer, rows: Expr, k: Expr, thread: Expr) -> None:
        """A thread's numbers of x; of a row past the last the last one's, which nobody stores."""
        source, depth = self._of["x"], self._work.depth
        for turn in range(int(held.shape[0])):
            number, first = _place(thread + turn * _THREADS, _X_PIECE)
            row = T.Bind(T.min(rows + number, self._work.rows - 1))
            if depth % _X_PIECE == 0:
                inside = zeroed(held, (turn,), _X_PIECE, k + first < depth, whole=depth % _STEP == 0)
                with inside, T.vectorized(0, _X_PIECE) as e:
                    T.buffer_store(held, source[row, k + first + e], [turn, e])
                continue
            for e in range(_X_PIECE):
                value = source[row, T.min(k + first + e, depth - 1)]
                T.buffer_store(held, T.if_then_else(k + first + e < depth, value, T.float32(0.0)), [turn, e])

    def _bring_w(self, weight: WeightPieces, columns: Expr, step: Expr, thread: Expr) -> None:
        """The same of the weight; of a feature past the last the last one's."""
        for half, turn, number, line in _pieces(self._halves, thread):
            feature = T.Bind(T.min(columns + number, self._features - 1) + half * self._features)
            weight.bring((half, turn), feature, step, line)

    def _put_x(self, tile: Buffer, held: Buffer, thread: Expr) -> None:
        """What was brought of x goes to its tile, as what is multiplied."""
        for turn in range(int(held.shape[0])):
            number, first = _place(thread + turn * _THREADS, _X_PIECE)
            with T.vectorized(0, _X_PIECE) as e:
                T.buffer_store(tile, narrow(held[turn, e], self._stored), [number * _LINE + first + e])

    def _multiply(
        self,
        sums: Buffer,
        x_tile: Buffer,
        w_tiles: list[Buffer],
        place: tuple[Expr, Expr],
        lane: Expr,
        thread: Expr,
    ) -> None:
        """A step's products, by fragments of 16 depths."""
        (down, across), given = place, self._instruction.given
        first = T.Bind(self._instruction.depth(lane))
        line = T.Bind(lane % SIDE)

        def fragment(tile: Buffer, row: Expr, k: Expr) -> Expr:
            return T.Bind(tile[T.ramp((row + line) * _LINE + first + k * SIDE, 1, given)])

        with T.serial(0, _STEP // SIDE) as k:
            right = [fragment(x_tile, across + j * SIDE, k) for j in range(self._fragments)]
            for half, tile in enumerate(w_tiles):
                for i in range(_DOWN):
                    left = fragment(tile, down + i * SIDE, k)
                    for j, factor in enumerate(right):
                        self._instruction.multiply(sums, (half, i, j), left, factor, self._stored, thread)

    def _store(self, sums: Buffer, weight: WeightPieces, rows: Expr, columns: Expr, lane: Expr) -> None:
        options, of, edges = self._options, self._of, self._features % _TILE != 0
        for j in range(self._fragments):
            row = T.Bind(rows + j * SIDE + lane % SIDE)
            with when(row < self._work.rows):
                for i in range(_DOWN):
                    for number in range(self._instruction.made):
                        feature = T.Bind(columns + i * SIDE + self._instruction.row(lane, number))
                        with when(feature < self._features) if edges else nullcontext():
                            value = weight.scaled(_lane_of(sums[0, i, j], number), feature)
                            if options.activation is not None:
                                gated = weight.scaled(_lane_of(sums[1, i, j], number), feature + self._features)
                                value = ACTIVATIONS[options.activation](T.Bind(value)) * gated
                            if options.bias:
                                value = value + of["bias"][feature]
                            if options.residual:
                                value = value + of["residual"][row, feature]
                            T.buffer_store(of["y"], value, [row, feature])


def _place(number: Expr, piece: int) -> tuple[Expr, Expr]:
    """Row of a tile and first depth of a piece."""
    return T.Bind(number // (_STEP // piece)), T.Bind(number % (_STEP // piece) * piece)


def _pieces(halves: int, thread: Expr) -> Iterator[tuple[int, int, Expr, Expr]]:
    """Those of the weight that a thread brings a step: half and turn, row of the tile, place in the row."""
    line = T.Bind(thread % _LINES)
    for half in range(halves):
        for turn in range(_TURNS):
            yield half, turn, T.Bind((thread + turn * _THREADS) // _LINES), line


def _lane_of(vector: Expr, number: int) -> Expr:
    return tirx.Shuffle([vector], [number])
