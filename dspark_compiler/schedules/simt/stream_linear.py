"""Linears of few rows: a matrix-vector product, or several at once that read each weight once.

A team (eight threads) multiplies a few rows of the weight by all rows of x: a thread takes 16 bytes of a weight's row,
its neighbour the next 16, so that a team reads 128 bytes in a row and adds up by shuffles. Where there are too few
rows to keep a device busy, several teams share a row's depth and add up in shared memory. How is decided by the
weight alone: a row of x gives the same bits whatever rows come with it.

The norm of what is read costs nothing: x times the norm's weight is multiplied, x squared is added up on the way,
and the sums are scaled by the inverse root at the end.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.simt.activations import ACTIVATIONS
from dspark_compiler.schedules.simt.row_schedule import MOST_SPLITS, RowSchedule
from dspark_compiler.schedules.simt.stored import load
from dspark_compiler.schedules.simt.threads import TEAM, barrier, launch, registers, shared, team_sum
from dspark_compiler.schedules.simt.weights import WeightForm, WeightReader
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

MOST_ROWS = 8  # of x that a launch takes at once

_TEAMS = MOST_SPLITS
_THREADS = _TEAMS * TEAM
_IN_FLIGHT = 8  # accesses a thread has under way
_LONGEST = 256  # multiplications written out one after the other


@dataclass(frozen=True)
class Options:
    """What a linear does besides its product."""

    bias: bool = False
    residual: bool = False
    activation: str | None = None  # of the first half of the features, which gates the second
    norm_eps: float | None = None  # of the root-mean-square norm of x, whose weight is an argument


PLAIN = Options()


def form_of(work: LinearWorkload) -> WeightForm:
    """The weight of a product."""
    return WeightForm(work.features, work.depth, work.weight_dtype, work.scale_dtype)


def stream_linear(
    name: str, work: LinearWorkload, schedule: RowSchedule, options: Options = PLAIN
) -> tvm.tirx.PrimFunc:
    """Kernel for y = norm(x) @ W.T [+ bias] [+ residual], or act(gate) * up of its halves.

    Arguments: x float32 [rows, depth], those of the weight (weights.py), [norm weight [depth]], [bias [features]],
    [residual [rows, features]], y float32 [rows, features], of gated ones [rows, features / 2].
    """
    features = work.features // 2 if options.activation else work.features
    args = [
        Arg("x", (work.rows, work.depth)),
        *form_of(work).args(),
        *([Arg("norm", (work.depth,))] if options.norm_eps is not None else []),
        *([Arg("bias", (features,))] if options.bias else []),
        *([Arg("residual", (work.rows, features))] if options.residual else []),
        Arg("y", (work.rows, features)),
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        for first in range(0, work.rows, MOST_ROWS):
            _Launch(work, schedule, options, of, first, min(MOST_ROWS, work.rows - first)).emit()

    return tag(kernel(name, args, body), work)


class _Launch:
    """One launch: rows first..first+count of x by the whole weight."""

    def __init__(
        self,
        work: LinearWorkload,
        schedule: RowSchedule,
        options: Options,
        of: dict[str, Buffer],
        first: int,
        count: int,
    ) -> None:
        self._work, self._options, self._of = work, options, of
        self._first, self._count = first, count
        self._weight = WeightReader(form_of(work), of)
        self._form = self._weight.form
        self._features = of["y"].shape[1]
        self._splits = schedule.splits
        self._sets = _TEAMS // schedule.splits  # of features that a work group makes at once
        self._outputs = 1 if count == 1 else 2  # features a team makes
        self._lines = self._outputs * (2 if options.activation else 1)  # rows of the weight it reads for them

    def emit(self) -> None:
        """The whole launch."""
        sets = self._sets
        grid = -(-int(self._features) // (sets * self._outputs))
        with launch((grid,), _THREADS) as (group, thread):
            lane, team = T.Bind(thread % TEAM), T.Bind(thread // TEAM)
            # Neighbours read the same of x.
            split, own = T.Bind(team // sets), T.Bind(team % sets)
            first = T.Bind((group * sets + own) * self._outputs)
            sums, squares = registers((self._count, self._lines)), registers(self._count)
            self._clear(sums, squares)
            lines = [self._line(first, line) for line in range(self._lines)]
            self._multiply(sums, squares, lines, (lane, split))
            totals = self._totals(sums, squares, lines, (lane, team))
            with when(split == 0) if self._splits > 1 else nullcontext():
                self._store(totals, first, lane)

    def _line(self, first: Expr, line: int) -> Expr:
        """Row of the weight; of what lies past the last feature the last."""
        feature = T.min(first + line % self._outputs, self._features - 1)
        return T.Bind(feature + self._features if line >= self._outputs else feature)

    def _clear(self, sums: Buffer, squares: Buffer) -> None:
        for m in range(self._count):
            T.buffer_store(squares, T.float32(0.0), [m])
            for line in range(self._lines):
                T.buffer_store(sums, T.float32(0.0), [m, line])

    def _multiply(self, sums: Buffer, squares: Buffer, lines: list[Expr], place: tuple[Expr, Expr]) -> None:
        """All of a thread's accesses, several at a time."""
        lane, split = place
        stride = TEAM * self._splits
        start = T.Bind(split * TEAM + lane)
        turns, rest = divmod(self._form.accesses, stride)
        work = self._lines * self._count * self._form.piece * self._form.pieces
        together = max(1, min(turns, _IN_FLIGHT // self._lines, _LONGEST // work))
        with T.serial(0, turns // together) as turn:
            self._step(sums, squares, lines, [start + (turn * together + i) * stride for i in range(together)])
        left = turns % together
        if left:
            self._step(sums, squares, lines, [start + (turns - left + i) * stride for i in range(left)])
        if rest:
            with when(start < rest):
                self._step(sums, squares, lines, [start + turns * stride])

    def _step(self, sums: Buffer, squares: Buffer, lines: list[Expr], accesses: list[Expr]) -> None:
        held = self._weight.load(len(accesses), len(lines), lambda i, line: (lines[line], accesses[i]))
        for i, access in enumerate(accesses):
            for piece in range(self._form.pieces):
                self._add_piece(sums, squares, lines, held, (i, piece), self._weight.column(access, piece))

    def _add_piece(
        self, sums: Buffer, squares: Buffer, lines: list[Expr], held: Buffer, which: tuple[int, int], column: Expr
    ) -> None:
        """What a piece of each of the weight's rows adds to all sums."""
        each, of, (i, piece) = self._form.piece, self._of, which
        normed, scaled = self._options.norm_eps is not None, self._form.by_group
        norm, weights = registers(each), registers((len(lines), each))
        if normed:
            self._load(norm, of["norm"], (), column)
        for line, row in enumerate(lines):
            for e in range(each):
                T.buffer_store(weights, self._weight.number(held, (i, line), piece, e), [line, e])
            if scaled:
                self._scale(weights, line, row, column)
        for m in range(self._count):
            x = registers(each)
            self._load(x, of["x"], (self._first + m,), column)
            for e in range(each):
                value = T.Bind(x[e])
                if normed:
                    T.buffer_store(squares, T.fma(value, value, squares[m]), [m])
                    value = T.Bind(value * norm[e])
                for line in range(len(lines)):
                    T.buffer_store(sums, T.fma(weights[line, e], value, sums[m, line]), [m, line])

    def _scale(self, weights: Buffer, line: int, row: Expr, column: Expr) -> None:
        """A piece of a row, times its group's scale, plus its offset."""
        factors = registers(2)
        T.buffer_store(factors, self._weight.factor("scale", row, column), [0])
        offset = T.float32(0.0)
        if "offset" in self._of:
            T.buffer_store(factors, self._weight.factor("offset", row, column), [1])
            offset = factors[1]
        for e in range(self._form.piece):
            T.buffer_store(weights, T.fma(weights[line, e], factors[0], offset), [line, e])

    def _load(self, target: Buffer, source: Buffer, outer: tuple[Expr, ...], k: Expr) -> None:
        """Numbers k.. of a row; zeros past its end."""
        depth, each = self._work.depth, self._form.piece
        if depth % each:
            for e in range(each):
                inside = T.if_then_else(k + e < depth, source[(*outer, T.min(k + e, depth - 1))], T.float32(0.0))
                T.buffer_store(target, inside, [e])
            return
        load(target, 0, source, (*outer, k if self._form.padded == depth else T.min(k, depth - each)), each)
        if self._form.padded != depth:
            for e in range(each):
                T.buffer_store(target, T.Select(k < depth, target[e], T.float32(0.0)), [e])

    def _totals(self, sums: Buffer, squares: Buffer, lines: list[Expr], place: tuple[Expr, Expr]) -> Buffer:
        """Sums over all that share a row, scaled where rows of the weight are, or x is normed."""
        lane, team = place
        normed = self._options.norm_eps is not None
        for m in range(self._count):
            for line in range(self._lines):
                T.buffer_store(sums, team_sum(sums[m, line]), [m, line])
            if normed:
                T.buffer_store(squares, team_sum(squares[m]), [m])
        if self._splits > 1:
            self._add_splits(sums, squares, lane, team)
        if self._form.format is not None and not self._form.by_group:
            for line, row in enumerate(lines):
                scale = T.Bind(self._weight.factor("scale", row, T.int32(0)))
                for m in range(self._count):
                    T.buffer_store(sums, sums[m, line] * scale, [m, line])
        if normed:
            for m in range(self._count):
                mean = squares[m] * T.float32(1.0 / self._work.depth)
                inverse = T.Bind(T.float32(1.0) / T.sqrt(mean + T.float32(self._options.norm_eps)))
                for line in range(self._lines):
                    T.buffer_store(sums, sums[m, line] * inverse, [m, line])
        return sums

    def _add_splits(self, sums: Buffer, squares: Buffer, lane: Expr, team: Expr) -> None:
        """What teams that share a row have, added up by the first of them."""
        normed = self._options.norm_eps is not None
        slots = self._lines + (1 if normed else 0)
        parts = shared((_TEAMS, self._count, slots))
        with when(lane == 0):
            for m in range(self._count):
                for line in range(self._lines):
                    T.buffer_store(parts, sums[m, line], [team, m, line])
                if normed:
                    T.buffer_store(parts, squares[m], [team, m, self._lines])
        barrier()
        with when(team < self._sets):
            for m in range(self._count):
                for slot in range(slots):
                    target, index = (squares, [m]) if slot == self._lines else (sums, [m, slot])
                    for other in range(1, self._splits):
                        T.buffer_store(target, target[tuple(index)] + parts[team + other * self._sets, m, slot], index)

    def _store(self, totals: Buffer, first: Expr, lane: Expr) -> None:
        """Each lane stores some rows' outputs."""
        activation: Callable[[Expr], Expr] | None = None
        if self._options.activation is not None:
            activation = ACTIVATIONS[self._options.activation]
        for m in range(self._count):
            for output in range(self._outputs):
                feature = T.Bind(first + output)
                with when(T.And(lane == (m * self._outputs + output) % TEAM, feature < self._features)):
                    value = totals[m, output]
                    if activation is not None:
                        value = activation(value) * totals[m, self._outputs + output]
                    if self._options.bias:
                        value = value + self._of["bias"][feature]
                    if self._options.residual:
                        value = value + self._of["residual"][self._first + m, feature]
                    T.buffer_store(self._of["y"], value, [self._first + m, feature])
