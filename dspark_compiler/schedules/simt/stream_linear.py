"""Linears of few rows: a matrix-vector product, or several at once that read each weight once.

A team (eight threads) multiplies a few rows of the weight by all rows of x: a thread takes 16 bytes of a weight's row,
its neighbour the next 16, so that a team reads 128 bytes in a row and adds up by shuffles. Where there are too few
rows to keep a device busy, several teams share a row's depth and add up in shared memory. How is decided by the
weight alone: a row of x gives the same bits whatever rows come with it.

The norm of what is read costs nothing: x times the norm's weight is multiplied, x squared is added up on the way,
and the sums are scaled by the inverse root at the end.

A launch that awaits x (awaited.py) holds all it can of its weight while it waits: few large work groups, since each
brings all of x, and threads that read several rows of the weight for each number of it.
"""

from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.simt.eighths import EIGHTHS
from dspark_compiler.schedules.simt.row_schedule import MOST_SPLITS, RowSchedule
from dspark_compiler.schedules.simt.stream_inputs import (
    KeptInputs,
    RoundedInputs,
    SeenInputs,
    StoredInputs,
    StreamInputs,
)
from dspark_compiler.schedules.simt.stream_output import PLAIN, Cut, Options, StreamOutput, TeamSums
from dspark_compiler.schedules.simt.threads import TEAM, barrier, launch, registers
from dspark_compiler.schedules.simt.weights import WeightForm, WeightReader
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

MOST_ROWS = 8  # of x that a launch takes at once

_MANY = 5  # rows of x from which on it takes longer to bring them than the weight
_LONGEST = 512  # multiplications written out one after the other


@dataclass(frozen=True)
class StreamForm:
    """How a launch goes about it.

    ``lines``: rows of the weight that a thread reads for a single row of x. ``in_flight``: accesses that it has under
    way. ``awaits``: of one row: x and the residual may be yet to come, and y is awaited. ``in_order``: x is not asked
    for before it is needed, which takes fewer registers; the target's code generator has to know how
    (rocm/device_library.py). ``rounds``: x is rounded as eighths are (eighths.py), which calls of fewer rows read.
    """

    threads: int = MOST_SPLITS * TEAM
    lines: int = 1
    in_flight: int = 8
    awaits: bool = False
    in_order: bool = False
    rounds: bool = False


def form_of(work: LinearWorkload) -> WeightForm:
    """The weight of a product."""
    return WeightForm(work.features, work.depth, work.weight_dtype, work.scale_dtype)


@made_once
def stream_linear(
    name: str, work: LinearWorkload, schedule: RowSchedule, options: Options = PLAIN, *, in_order: bool = False
) -> tvm.tirx.PrimFunc:
    """Kernel for y = norm(x) @ W.T [+ bias] [+ residual], or act(gate) * up of its halves; see ``stream_args``."""
    args = stream_args(work, options)

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        emit_stream_linear(work, schedule, options, of, StreamForm(in_order=in_order))

    return tag(kernel(name, args, body), work)


def stream_args(work: LinearWorkload, options: Options) -> list[Arg]:
    """What it takes: x float32 [rows, depth], a weight (weights.py), [norm [depth]], [bias [features]], [residual], y.

    x and y may be in eighths (``Options``).
    Residual and y are float32 [rows, features], of gated ones [rows, features / 2]; a residual of ``residual_step``
    has so many rows for each of x.
    """
    features = work.features // 2 if options.activation else work.features
    return [
        Arg("x", (work.rows, work.depth), EIGHTHS if options.reads_eighths else "float32"),
        *form_of(work).args(),
        *([Arg("norm", (work.depth,))] if options.norm_eps is not None else []),
        *([Arg("bias", (features,))] if options.bias else []),
        *([Arg("residual", (work.rows * options.residual_step, features))] if options.residual else []),
        Arg("y", (work.rows, features), EIGHTHS if options.writes_eighths else "float32"),
    ]


def emit_stream_linear(
    work: LinearWorkload, schedule: RowSchedule, options: Options, of: dict[str, Buffer], form: StreamForm
) -> None:
    """The launches, one for each ``MOST_ROWS`` rows of x; ``of`` has the buffers of ``stream_args`` by name."""
    for first in range(0, work.rows, MOST_ROWS):
        _Launch(work, schedule, options, of, (first, min(MOST_ROWS, work.rows - first)), form).emit()


def outputs_of(rows: int, options: Options, lines: int = 1) -> int:
    """Features a team makes: what it reads of x serves more than one."""
    if rows == 1:
        return max(1, lines // (2 if options.activation else 1))
    # Gated, these are twice as many rows of the weight: eight take more registers than leave room for two waves.
    return 4 if rows >= _MANY and options.activation is None else 2


class _Launch:
    """One launch: ``rows`` (the first, and how many) of x by the whole weight."""

    def __init__(
        self,
        work: LinearWorkload,
        schedule: RowSchedule,
        options: Options,
        of: dict[str, Buffer],
        rows: tuple[int, int],
        form: StreamForm,
    ) -> None:
        self._work, self._options, self._of, self._how = work, options, of, form
        self._weight = WeightReader(form_of(work), of)
        self._form = self._weight.form
        outputs = outputs_of(rows[1], options, form.lines)
        self._cut = Cut(*rows, outputs, schedule.splits, form.threads // TEAM)
        self._features = of["y"].shape[1]
        # Rows of the weight that a team reads.
        self._lines = self._cut.outputs * (2 if options.activation else 1)

    def emit(self) -> None:
        """The whole launch."""
        cut = self._cut
        with launch((-(-int(self._features) // cut.features),), self._how.threads) as (group, thread):
            output = StreamOutput(cut, self._options, self._weight, self._of, awaits=self._how.awaits)
            totals = TeamSums(cut, self._lines, squares=self._options.norm_eps is not None)
            inputs = self._inputs()
            lane, team = T.Bind(thread % TEAM), T.Bind(thread // TEAM)
            # Neighbours read the same of x.
            split, own = T.Bind(team // cut.sets), T.Bind(team % cut.sets)
            first = T.Bind((group * cut.sets + own) * cut.outputs)
            sums, squares = registers((cut.count, self._lines)), registers(cut.count)
            self._clear(sums, squares)
            lines = [self._line(first, line) for line in range(self._lines)]
            self._multiply(_Sums(sums, squares, inputs), lines, T.Bind(split * TEAM + lane), (group, thread), output)
            if self._how.awaits:
                barrier()  # what is kept of x may lie where sums go now
            totals.put(sums, squares, thread)
            barrier()
            output.store(totals, group, thread)

    def _inputs(self) -> StreamInputs:
        found = self._found_inputs()
        return RoundedInputs(found, self._form.piece) if self._how.rounds else found

    def _found_inputs(self) -> StreamInputs:
        cut, work, form, of = self._cut, self._work, self._form, self._of
        if not self._how.awaits:
            return StoredInputs(work, form, of, cut.first)
        kind = KeptInputs if KeptInputs.can_keep(form, normed="norm" in of) else SeenInputs
        return kind(work, form, of, cut.first, self._how.threads)

    def _line(self, first: Expr, line: int) -> Expr:
        """Row of the weight; of what lies past the last feature the last."""
        feature = T.min(first + line % self._cut.outputs, self._features - 1)
        return T.Bind(feature + self._features if line >= self._cut.outputs else feature)

    def _clear(self, sums: Buffer, squares: Buffer) -> None:
        for m in range(self._cut.count):
            T.buffer_store(squares, T.float32(0.0), [m])
            for line in range(self._lines):
                T.buffer_store(sums, T.float32(0.0), [m, line])

    def _multiply(
        self, to: "_Sums", lines: list[Expr], start: Expr, place: tuple[Expr, Expr], output: StreamOutput
    ) -> None:
        """All of a thread's accesses, several at a time."""
        stride = TEAM * self._cut.splits
        turns, rest = divmod(self._form.accesses, stride)
        work = self._lines * self._cut.count * self._form.piece * self._form.pieces
        together = max(1, min(turns, self._how.in_flight // self._lines, _LONGEST // work))
        whole, left = divmod(turns, together)

        def step(turn: Expr | int) -> list[Expr]:
            return [T.Bind(start + (turn * together + i) * stride) for i in range(together)]

        begin = 0
        if self._how.awaits:
            early = step(0) if turns else []
            held = self._load(lines, early)
            output.ask(*place)
            to.inputs.bring(place[1])
            self._add_held(to, lines, early, held)
            begin = 1
        with T.serial(0, max(0, whole - begin)) as turn:
            self._add(to, lines, step(turn + begin))
        if left:
            self._add(to, lines, [start + (turns - left + i) * stride for i in range(left)])
        if rest:
            with when(start < rest):
                self._add(to, lines, [start + turns * stride])

    def _add(self, to: "_Sums", lines: list[Expr], accesses: list[Expr]) -> None:
        """What some accesses add to all sums."""
        self._add_held(to, lines, accesses, self._load(lines, accesses))

    def _load(self, lines: list[Expr], accesses: list[Expr]) -> Buffer | None:
        if not accesses:
            return None
        return self._weight.load(len(accesses), len(lines), lambda i, line: (lines[line], accesses[i]))

    def _add_held(self, to: "_Sums", lines: list[Expr], accesses: list[Expr], held: Buffer | None) -> None:
        for i, access in enumerate(accesses):
            for piece in range(self._form.pieces):
                self._add_piece(to, lines, held, (i, piece), self._weight.column(access, piece))
                if self._how.in_order:
                    T.evaluate(T.call_extern("void", "dspark_in_order"))

    def _add_piece(self, to: "_Sums", lines: list[Expr], held: Buffer, which: tuple[int, int], column: Expr) -> None:
        """What a piece of each of the weight's rows adds to all sums."""
        each, (i, piece) = self._form.piece, which
        sums, squares, normed = to.sums, to.squares, self._options.norm_eps is not None
        norm, weights = registers(each), registers((len(lines), each))
        if normed:
            to.inputs.norm(norm, column)
        for line, row in enumerate(lines):
            for e in range(each):
                T.buffer_store(weights, self._weight.number(held, (i, line), piece, e), [line, e])
            if self._form.by_group:
                self._scale(weights, line, row, column)
        for m in range(self._cut.count):
            x = registers(each)
            to.inputs.x(x, m, column)
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


@dataclass(frozen=True)
class _Sums:
    """What a thread adds up, ``sums`` [count, lines] and ``squares`` [count] of x, and where it finds x."""

    sums: Buffer
    squares: Buffer
    inputs: StreamInputs
