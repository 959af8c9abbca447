"""Linears of few rows by cooperative matrices, which await x: a subgroup a part of the depth.

A subgroup holds its part of some rows of the weight as matrices, straight from memory, while it waits for the same
part of x; sums of sixteen rows are four registers a thread, however many rows x has. Parts are added up through
memory on the chip. Nothing of how a weight is cut depends on the rows of x: each gets the same bits whatever rows come
with it.

x is rounded to float16, as eager float16 does, but divided by eight first, so that half a million fits: a model's large
activations do not end as infinities. Devices may take float16's subnormal numbers for zero, which are those below
0.0005 here. Sums are float32.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.awaited import Ask, await_numbers
from dspark_compiler.schedules.simt.eighths import EIGHTHS, UNIT, AskPair, packed
from dspark_compiler.schedules.simt.stored import copy
from dspark_compiler.schedules.simt.stream_linear import MOST_ROWS, form_of
from dspark_compiler.schedules.simt.stream_output import Cut, Options, StreamOutput
from dspark_compiler.schedules.simt.threads import TEAM, barrier, launch, registers, shared, team_sums
from dspark_compiler.schedules.simt.weights import WeightForm, WeightReader
from dspark_compiler.schedules.tir import Buffer, Expr, when
from dspark_compiler.schedules.vulkan.matrices import SIDE, SUBGROUP, Matrices
from dspark_compiler.schedules.vulkan.matrix_cut import (
    LEAST_PITCH,
    PITCH,
    PITCH_OF_X,
    REGION,
    STEP,
    STEP_WORDS,
    SUMS,
    TILES,
    MatrixCut,
)
from dspark_compiler.schedules.vulkan.matrix_weights import CodedWeight, TiledWeight, Weight


def emit_matrix_stream(
    work: LinearWorkload, cut: MatrixCut, options: Options, of: dict[str, Buffer], matrices: Matrices
) -> None:
    """A launch for all eights of rows of x, and one for the rest; ``of`` has the buffers of ``stream_args`` by name."""
    eights, rest = divmod(work.rows, MOST_ROWS)
    if eights:
        _Launch(work, cut, options, of, _Rows(0, MOST_ROWS, eights), matrices).emit()
    if rest:
        _Launch(work, cut, options, of, _Rows(eights * MOST_ROWS, rest), matrices).emit()


@dataclass(frozen=True)
class _Rows:
    """Rows of x from ``first`` on, ``count`` for each work group, which ``times`` of these take side by side."""

    first: int
    count: int
    times: int = 1


class _MatrixSums:
    """See Sums: of matrices, a column of each for a row of x."""

    def __init__(self, cut: MatrixCut, memory: Buffer, squares: Buffer) -> None:
        self._cut, self._memory, self._squares = cut, memory, squares

    def put(self, matrices: Matrices, sums: Buffer, split: Expr) -> None:
        """Stores a subgroup's part."""
        for line in range(self._cut.lines):
            matrices.store(self._memory, (split * self._cut.lines + line) * SUMS, PITCH, sums, line)

    def total(self, own: Expr, m: Expr, slot: Expr) -> Buffer:
        """See Sums."""
        total, lines = registers(1), self._cut.lines
        place = T.Bind(slot // SIDE * SUMS + slot % SIDE * PITCH + m)
        T.buffer_store(total, T.float32(0.0), [0])
        for split in range(self._cut.splits):
            T.buffer_store(total, total[0] + self._memory[place + split * lines * SUMS], [0])
        T.buffer_store(total, total[0] * T.float32(UNIT), [0])
        return total

    def squares(self, own: Expr, m: Expr) -> Buffer:
        """See Sums."""
        total = registers(1)
        T.buffer_store(total, T.float32(0.0), [0])
        for split in range(self._cut.splits):
            T.buffer_store(total, total[0] + self._squares[split, m], [0])
        return total


class _Launch:
    """One launch: some rows of x by the whole weight."""

    def __init__(
        self,
        work: LinearWorkload,
        cut: MatrixCut,
        options: Options,
        of: dict[str, Buffer],
        rows: _Rows,
        matrices: Matrices,
    ) -> None:
        self._work, self._cut, self._options, self._of, self._matrices = work, cut, options, of, matrices
        self._rows, self._count = rows, rows.count
        self._features = int(of["y"].shape[1])

    def emit(self) -> None:
        """The whole launch."""
        cut, work = self._cut, self._work
        wide = cut.blocks * SIDE
        groups = -(-self._features // wide)
        # Those that read the same of the weight lie side by side.
        grid = (groups,) if self._rows.times == 1 else (self._rows.times, groups)
        with launch(grid, cut.threads) as (*eight, group, thread):
            first = T.Bind(eight[0] * MOST_ROWS) if eight else self._rows.first
            plan = Cut(first, self._count, wide, cut.splits, cut.splits, SUBGROUP)
            output = StreamOutput(plan, self._options, WeightReader(form_of(work), self._of), self._of, awaits=True)
            memory, squares = shared(cut.words), shared((cut.splits, MOST_ROWS))
            sums = self._matrices.sums(cut.lines * cut.chains)
            lane, split = T.Bind(thread % SUBGROUP), T.Bind(thread // SUBGROUP)
            part = _Part(self, first, memory, lane, split, group)
            part.multiply(sums, lambda: output.ask(group, thread))
            if cut.chains == 2:
                self._matrices.add(sums, 0, 1)
            part.put_squares(squares)
            barrier()  # where x was come sums
            totals = _MatrixSums(cut, memory, squares)
            totals.put(self._matrices, sums, split)
            barrier()
            output.store(totals, group, thread)


class _Part:
    """What a subgroup does of a launch: its part of the depth, ``cut.steps`` steps."""

    def __init__(self, whole: _Launch, first: Expr | int, memory: Buffer, lane: Expr, split: Expr, group: Expr) -> None:
        self._cut, self._ahead, self._of, self._matrices = whole._cut, whole._cut.ahead, whole._of, whole._matrices
        self._depth = whole._work.depth
        self._normed = whole._options.norm_eps is not None
        self._first, self._count, self._features = first, whole._count, whole._features
        self._memory, self._lane = memory, lane
        self._pitch = LEAST_PITCH if self._count == 1 else PITCH_OF_X
        self._region, self._start = T.Bind(split * self._cut.region), T.Bind(split * (self._cut.steps * STEP))
        self._split = split
        blocks = self._cut.blocks
        rows = []  # of the weight, the first of each sixteen
        for half in range(self._cut.halves):
            for block in range(blocks):
                feature = T.min((group * blocks + block) * SIDE, self._features - SIDE)
                rows.append(T.Bind(feature + half * self._features))
        self._weight = self._held(form_of(whole._work), rows)
        self._eighths = whole._options.reads_eighths  # a thread's two numbers are a word then
        self._x = registers((self._ahead, self._count, 1 if self._eighths else 2))
        self._norm = registers((self._ahead, 2))
        self._squares = registers(self._count)

    def multiply(self, sums: Buffer, ask: Callable[[], None]) -> None:
        """Adds up all steps; ``ask`` is done once the first of the weight is on its way."""
        for m in range(self._count):
            T.buffer_store(self._squares, T.float32(0.0), [m])
        for place in range(0, self._ahead, self._weight.per):
            self._weight.bring(place, T.int32(place))
        ask()
        turns, rest = divmod(self._cut.steps, self._ahead)
        if turns == 1 and not rest:
            self._turn(sums, T.int32(0), self._ahead)
            return
        with T.serial(0, turns) as turn:
            self._turn(sums, T.Bind(turn * self._ahead), self._ahead)
        if rest:
            self._turn(sums, T.int32(turns * self._ahead), rest)

    def put_squares(self, squares: Buffer) -> None:
        """Adds up over the subgroup."""
        if not self._normed:
            return
        own = T.Bind(self._lane % TEAM)
        total = self._matrices.over_teams(team_sums([self._squares[m] for m in range(self._count)], own))
        with when(self._lane < self._count):
            T.buffer_store(squares, total, [self._split, self._lane])

    def _turn(self, sums: Buffer, step: Expr, count: int) -> None:
        self._weight.settle(count)
        self._await(step, count)
        together = count if self._count == 1 else 1
        for first in range(0, count, together):
            places = range(first, min(first + together, count))
            for place in places:
                self._put(place, step + place, (place - first) * STEP_WORDS)
            self._matrices.meet()
            for place in places:
                self._multiply(sums, place, (place - first) * STEP_WORDS)
            self._matrices.meet()
            if self._cut.steps > self._ahead:
                for place in places:
                    last = place % self._weight.per == self._weight.per - 1
                    first = place - (self._weight.per - 1)
                    with when(step + (first + self._ahead) < self._cut.steps) if last else nullcontext():
                        if last:
                            self._weight.bring(first, step + (first + self._ahead))

    def _multiply(self, sums: Buffer, place: int, start: int) -> None:
        """Adds up a step whose x lies from word ``start`` of a column on."""
        right = self._matrices.right(1)
        for tile in range(TILES):
            column = self._region + (start + tile * (SIDE // 2))
            self._matrices.load(right, 0, self._memory, column, self._pitch)
            for line in range(self._cut.lines):
                number = (place * TILES + tile) * self._cut.lines + line
                chain = tile % self._cut.chains * self._cut.lines
                self._matrices.multiply(sums, chain + line, self._weight.matrices, number, right, 0)

    def _held(self, form: WeightForm, rows: list[Expr]) -> Weight:
        """The subgroup's part of the weight, from the ``rows`` of which on there are sixteens."""
        if form.format is None:
            return TiledWeight(self._cut, self._of["w"], self._depth, self._matrices, rows, self._start)
        memory = self._memory, T.Bind(self._region + REGION)
        return CodedWeight(self._cut, form, self._of, self._matrices, rows, self._start, self._lane, memory)

    def _column(self, step: Expr) -> Expr:
        """The first of the two that a thread brings of x."""
        return T.Bind(self._start + step * STEP + self._lane * 2)

    def _await(self, step: Expr, count: int) -> None:
        inside = [T.Bind(T.min(self._column(step + place), self._depth - 2)) for place in range(count)]
        if self._normed:
            for place in range(count):
                copy(self._norm, (place, T.int32(0)), self._of["norm"], (inside[place],), 2)
                for i in range(2):
                    T.buffer_store(self._norm, self._norm[place, i] * T.float32(1 / UNIT), [place, i])
        places = [(place, m) for place in range(count) for m in range(self._count)]
        source, x = [(self._first + m, inside[place]) for place, m in places], self._of["x"]
        pairs = zip(places, source, strict=True)
        if self._eighths:
            await_numbers([AskPair(self._x, (*at, 0), x, index) for at, index in pairs])
        else:
            await_numbers([Ask(self._x, (*at, 0), x, index, 2) for at, index in pairs])

    def _put(self, place: int, step: Expr, start: int) -> None:
        """A step of x for the subgroup, as pairs of float16, from word ``start`` of each column on."""
        at, column = T.Bind(self._region + start + self._lane), self._column(step)
        for m in range(self._count):
            T.buffer_store(self._memory, self._pair_of_x(place, m, column), [at + m * self._pitch])

    def _pair_of_x(self, place: int, m: int, column: Expr) -> Expr:
        """A thread's two numbers of a row and step as they are multiplied."""
        if self._eighths:
            return self._inside(self._x[place, m, 0], column)
        pair = [self._number_of_x(place, m, i, column) for i in range(2)]
        return packed(*(T.Bind(T.cast(n, EIGHTHS)) for n in pair))

    def _number_of_x(self, place: int, m: int, i: int, column: Expr) -> Expr:
        """As it is multiplied: times the norm's weight, in units."""
        x = self._inside(self._x[place, m, i], column)
        if self._normed:
            T.buffer_store(self._squares, T.fma(x, x, self._squares[m]), [m])
        return T.Bind(x * (self._norm[place, i] if self._normed else T.float32(1 / UNIT)))

    def _inside(self, x: Expr, column: Expr) -> Expr:
        """What comes of x at a column, of which there may be none."""
        if self._cut.splits * self._cut.steps * STEP == self._depth:
            return x
        return T.Bind(T.Select(column < self._depth, x, T.float32(0.0)))
