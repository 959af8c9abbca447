"""Linears of few rows: a matrix-vector product, or several at once that read each weight once.

A team (eight threads) multiplies a few rows of the weight by all rows of x: a thread takes 16 bytes of a weight's row,
its neighbour the next 16, so that a team reads 128 bytes in a row and adds up by shuffles. Where there are too few
rows to keep a device busy, several teams share a row's depth and add up in shared memory. How is decided by the
weight alone: a row of x gives the same bits whatever rows come with it.

The norm of what is read costs nothing: x times the norm's weight is multiplied, x squared is added up on the way,
and the sums are scaled by the inverse root at the end.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.simt.row_schedule import MOST_SPLITS, RowSchedule
from dspark_compiler.schedules.simt.stored import load
from dspark_compiler.schedules.simt.stream_output import PLAIN, Cut, Options, StreamOutput
from dspark_compiler.schedules.simt.threads import TEAM, launch, registers
from dspark_compiler.schedules.simt.weights import WeightForm, WeightReader
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

MOST_ROWS = 8  # of x that a launch takes at once

_TEAMS = MOST_SPLITS
_THREADS = _TEAMS * TEAM
_IN_FLIGHT = 8  # accesses a thread has under way
_MANY = 5  # rows of x from which on it takes longer to bring them than the weight
_LONGEST = 512  # multiplications written out one after the other


def form_of(work: LinearWorkload) -> WeightForm:
    """The weight of a product."""
    return WeightForm(work.features, work.depth, work.weight_dtype, work.scale_dtype)


def stream_linear(
    name: str, work: LinearWorkload, schedule: RowSchedule, options: Options = PLAIN, *, in_order: bool = False
) -> tvm.tirx.PrimFunc:
    """Kernel for y = norm(x) @ W.T [+ bias] [+ residual], or act(gate) * up of its halves.

    Arguments: x float32 [rows, depth], those of the weight (weights.py), [norm weight [depth]], [bias [features]],
    [residual [rows, features]], y float32 [rows, features], of gated ones [rows, features / 2].

    ``in_order``: x is not asked for before it is needed, which takes fewer registers; the target's code generator has
    to know how (rocm/device_library.py).
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
            _Launch(work, schedule, options, of, first, min(MOST_ROWS, work.rows - first), in_order).emit()

    return tag(kernel(name, args, body), work)


def outputs_of(rows: int, options: Options) -> int:
    """Features a team makes: what it reads of several rows of x serves more than one."""
    if rows == 1:
        return 1
    # Gated, these are twice as many rows of the weight: eight take more registers than leave room for two waves.
    return 4 if rows >= _MANY and options.activation is None else 2


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
        in_order: bool,
    ) -> None:
        self._work, self._options, self._of, self._in_order = work, options, of, in_order
        self._weight = WeightReader(form_of(work), of)
        self._form = self._weight.form
        self._cut = Cut(first, count, outputs_of(count, options), schedule.splits, _TEAMS)
        self._features = of["y"].shape[1]
        # Rows of the weight that a team reads.
        self._lines = self._cut.outputs * (2 if options.activation else 1)

    def emit(self) -> None:
        """The whole launch."""
        cut = self._cut
        with launch((-(-int(self._features) // cut.features),), _THREADS) as (group, thread):
            output = StreamOutput(cut, self._options, self._weight, self._of)
            lane, team = T.Bind(thread % TEAM), T.Bind(thread // TEAM)
            # Neighbours read the same of x.
            split, own = T.Bind(team // cut.sets), T.Bind(team % cut.sets)
            first = T.Bind((group * cut.sets + own) * cut.outputs)
            sums, squares = registers((cut.count, self._lines)), registers(cut.count)
            self._clear(sums, squares)
            lines = [self._line(first, line) for line in range(self._lines)]
            self._multiply(sums, squares, lines, (lane, split))
            output.store(sums, squares, group, thread)

    def _line(self, first: Expr, line: int) -> Expr:
        """Row of the weight; of what lies past the last feature the last."""
        feature = T.min(first + line % self._cut.outputs, self._features - 1)
        return T.Bind(feature + self._features if line >= self._cut.outputs else feature)

    def _clear(self, sums: Buffer, squares: Buffer) -> None:
        for m in range(self._cut.count):
            T.buffer_store(squares, T.float32(0.0), [m])
            for line in range(self._lines):
                T.buffer_store(sums, T.float32(0.0), [m, line])

    def _multiply(self, sums: Buffer, squares: Buffer, lines: list[Expr], place: tuple[Expr, Expr]) -> None:
        """All of a thread's accesses, several at a time."""
        lane, split = place
        stride = TEAM * self._cut.splits
        start = T.Bind(split * TEAM + lane)
        turns, rest = divmod(self._form.accesses, stride)
        work = self._lines * self._cut.count * self._form.piece * self._form.pieces
        together = max(1, min(turns, _IN_FLIGHT // self._lines, _LONGEST // work))
        whole, left = divmod(turns, together)

        def step(turn: Expr | int) -> list[Expr]:
            return [T.Bind(start + (turn * together + i) * stride) for i in range(together)]

        with T.serial(0, whole) as turn:
            self._add(sums, squares, lines, step(turn))
        if left:
            accesses = [start + (turns - left + i) * stride for i in range(left)]
            self._add(sums, squares, lines, accesses)
        if rest:
            with when(start < rest):
                self._add(sums, squares, lines, [start + turns * stride])

    def _add(self, sums: Buffer, squares: Buffer, lines: list[Expr], accesses: list[Expr]) -> None:
        """What some accesses add to all sums."""
        held = self._weight.load(len(accesses), len(lines), lambda i, line: (lines[line], accesses[i]))
        for i, access in enumerate(accesses):
            for piece in range(self._form.pieces):
                self._add_piece(sums, squares, lines, held, (i, piece), self._weight.column(access, piece))
                if self._in_order:
                    T.evaluate(T.call_extern("void", "dspark_in_order"))

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
        for m in range(self._cut.count):
            x = registers(each)
            self._load(x, of["x"], (self._cut.first + m,), column)
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
