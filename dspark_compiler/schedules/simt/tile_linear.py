"""Linears of many rows: tiles of x and of the weight in shared memory, a square of sums in each thread's registers.

A tile of 64 rows of x by 64 features; its depth goes by in steps of 16. What lies past an edge is read as zero.
"""

from contextlib import nullcontext

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.simt.activations import ACTIVATIONS
from dspark_compiler.schedules.simt.stored import load
from dspark_compiler.schedules.simt.stream_linear import form_of
from dspark_compiler.schedules.simt.stream_output import PLAIN, Options
from dspark_compiler.schedules.simt.threads import barrier, launch, registers, shared
from dspark_compiler.schedules.simt.weights import WeightReader
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_TILE, _STEP, _SIDE = 64, 16, 16  # rows and features of a tile, depth of a step, threads along a side
_OWN = _TILE // _SIDE  # rows, and features, of a thread
_THREADS = _SIDE * _SIDE
_VECTOR = 4  # numbers a thread brings at once
_LINE = _TILE + _VECTOR  # of a tile in shared memory: neighbours down a column lie in different banks


@made_once
def tile_linear(name: str, work: LinearWorkload, options: Options = PLAIN) -> tvm.tirx.PrimFunc:
    """Kernel for y = x @ W.T [+ bias] [+ residual], or act(gate) * up of its halves.

    Arguments: x float32 [rows, depth], those of the weight (weights.py), [bias [features]], [residual
    [rows, features]], y float32 [rows, features], of gated ones [rows, features / 2].
    """
    args = tile_args(work, options)

    def body(*buffers: Buffer) -> None:
        emit_tile_linear(work, options, dict(zip((arg.name for arg in args), buffers, strict=True)))

    return tag(kernel(name, args, body), work)


def tile_args(work: LinearWorkload, options: Options) -> list[Arg]:
    """What ``tile_linear`` takes, y at the end."""
    assert options.norm_eps is None
    features = work.features // 2 if options.activation else work.features
    return [
        Arg("x", (work.rows, work.depth)),
        *form_of(work).args(),
        *([Arg("bias", (features,))] if options.bias else []),
        *([Arg("residual", (work.rows, features))] if options.residual else []),
        Arg("y", (work.rows, features)),
    ]


def emit_tile_linear(work: LinearWorkload, options: Options, of: dict[str, Buffer]) -> None:
    """Its launch, over its buffers by name."""
    _Tile(work, options, int(of["y"].shape[1]), of).emit()


class _Tile:
    """The launch: a work group a tile of y. Gated, it makes a tile of each half."""

    def __init__(self, work: LinearWorkload, options: Options, features: int, of: dict[str, Buffer]) -> None:
        self._work, self._options, self._of, self._features = work, options, of, features
        self._weight = WeightReader(form_of(work), of)
        self._halves = 2 if options.activation else 1

    def emit(self) -> None:
        """The whole launch."""
        grid = (-(-self._features // _TILE), -(-self._work.rows // _TILE))
        with launch(grid, _THREADS) as (column, row, thread):
            rows, columns = T.Bind(row * _TILE), T.Bind(column * _TILE)
            x_tile = shared((_STEP, _LINE))
            w_tiles = [shared((_STEP, _LINE)) for _ in range(self._halves)]
            sums = registers((self._halves, _OWN, _OWN))
            for half in range(self._halves):
                for i in range(_OWN):
                    for j in range(_OWN):
                        T.buffer_store(sums, T.float32(0.0), [half, i, j])
            x, y = T.Bind(thread % _SIDE), T.Bind(thread // _SIDE)
            with T.serial(0, -(-self._work.depth // _STEP)) as step:
                k = T.Bind(step * _STEP)
                self._bring_x(x_tile, rows, k, thread)
                for half, tile in enumerate(w_tiles):
                    self._bring_w(tile, half, columns, k, thread)
                barrier()
                self._multiply(sums, x_tile, w_tiles, x, y)
                barrier()
            self._store(sums, rows + y * _OWN, columns + x * _OWN)

    def _bring_x(self, tile: Buffer, rows: Expr, k: Expr, thread: Expr) -> None:
        """A thread's four numbers of x, turned so that those of one depth lie side by side."""
        work, number, first = self._work, T.Bind(thread // _VECTOR), T.Bind(thread % _VECTOR * _VECTOR)
        row = T.Bind(T.min(rows + number, work.rows - 1))
        held = registers(_VECTOR)
        if work.depth % _STEP == 0:
            with T.vectorized(0, _VECTOR) as e:
                T.buffer_store(held, self._of["x"][row, k + first + e], [e])
        else:
            for e in range(_VECTOR):
                inside = k + first + e < work.depth
                value = self._of["x"][row, T.min(k + first + e, work.depth - 1)]
                T.buffer_store(held, T.if_then_else(inside, value, T.float32(0.0)), [e])
        for e in range(_VECTOR):
            T.buffer_store(tile, held[e], [first + e, number])

    def _bring_w(self, tile: Buffer, half: int, columns: Expr, k: Expr, thread: Expr) -> None:
        """The same of the weight, whose rows are whole accesses."""
        number, first = T.Bind(thread // _VECTOR), T.Bind(thread % _VECTOR * _VECTOR)
        feature = T.Bind(T.min(columns + number, self._features - 1) + half * self._features)
        form, held = self._weight.form, registers(_VECTOR)
        inside = nullcontext() if form.padded % _STEP == 0 else when(k + first < form.padded)
        if form.padded % _STEP:
            for e in range(_VECTOR):
                T.buffer_store(held, T.float32(0.0), [e])
        with inside:
            if form.format is None:
                load(held, 0, self._of["w"], form.place(feature, T.Bind(k + first)), _VECTOR)
            else:
                for e in range(_VECTOR):
                    T.buffer_store(held, self._weight.element(feature, k + first + e), [e])
        for e in range(_VECTOR):
            T.buffer_store(tile, held[e], [first + e, number])

    def _multiply(self, sums: Buffer, x_tile: Buffer, w_tiles: list[Buffer], x: Expr, y: Expr) -> None:
        with T.serial(0, _STEP) as d:
            left = registers(_OWN)
            with T.vectorized(0, _OWN) as i:
                T.buffer_store(left, x_tile[d, y * _OWN + i], [i])
            for half, tile in enumerate(w_tiles):
                right = registers(_OWN)
                with T.vectorized(0, _OWN) as j:
                    T.buffer_store(right, tile[d, x * _OWN + j], [j])
                for i in range(_OWN):
                    for j in range(_OWN):
                        T.buffer_store(sums, T.fma(left[i], right[j], sums[half, i, j]), [half, i, j])

    def _store(self, sums: Buffer, first_row: Expr, first_feature: Expr) -> None:
        options, of = self._options, self._of
        for i in range(_OWN):
            for j in range(_OWN):
                row, feature = T.Bind(first_row + i), T.Bind(first_feature + j)
                with when(T.And(row < self._work.rows, feature < self._features)):
                    value = sums[0, i, j]
                    if options.activation is not None:
                        value = ACTIVATIONS[options.activation](value) * sums[1, i, j]
                    if options.bias:
                        value = value + of["bias"][feature]
                    if options.residual:
                        value = value + of["residual"][row, feature]
                    T.buffer_store(of["y"], value, [row, feature])
