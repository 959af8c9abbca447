"""How a work group that has streamed its part of a weight ends: sums of teams are added up, and threads store them.

Sums of a row's splits are added in their order, whatever the rows of x.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.activations import ACTIVATIONS
from dspark_compiler.schedules.simt.awaited import Ask, await_numbers, publish
from dspark_compiler.schedules.simt.eighths import as_eighths, publish_pair
from dspark_compiler.schedules.simt.threads import TEAM, registers, shared, team_sums
from dspark_compiler.schedules.simt.weights import WeightReader
from dspark_compiler.schedules.tir import Buffer, Expr, when


@dataclass(frozen=True)
class Options:
    """What a linear does besides its product.

    ``residual_row``, ``residual_step``: row m of x is given row residual_row + m * residual_step of the residual.
    Products of few rows know how.
    """

    bias: bool = False
    residual: bool = False
    residual_row: int = 0
    residual_step: int = 1
    activation: str | None = None  # of the first half of the features, which gates the second
    norm_eps: float | None = None  # of the root-mean-square norm of x, whose weight is an argument
    reads_eighths: bool = False  # x is (eighths.py)
    writes_eighths: bool = False  # y is; without a residual

    def __post_init__(self) -> None:
        if self.residual and self.writes_eighths:
            raise ValueError("a residual is added to float32, not to eighths")


PLAIN = Options()


@dataclass(frozen=True)
class Cut:
    """How a launch is cut: rows first..first+count of x, features a team makes, teams that share them."""

    first: Expr | int
    count: int
    outputs: int
    splits: int
    teams: int  # of a work group
    lanes: int = TEAM  # threads of a team

    @property
    def threads(self) -> int:
        """Of a work group."""
        return self.teams * self.lanes

    @property
    def sets(self) -> int:
        """Sets of features that a work group makes at once."""
        return self.teams // self.splits

    @property
    def features(self) -> int:
        """That a work group makes."""
        return self.sets * self.outputs


class Sums(Protocol):
    """What teams have added up, once it lies in memory that a work group shares. Made at the top of a kernel."""

    def total(self, own: Expr, m: Expr, slot: Expr) -> Buffer:
        """Row m of x by row ``slot`` of those of the weight that set ``own`` of the teams has read."""

    def squares(self, own: Expr, m: Expr) -> Buffer:
        """Row m of x by itself."""


class TeamSums:
    """See Sums: of teams of eight, each thread of which has sums of its own."""

    def __init__(self, cut: Cut, lines: int, *, squares: bool) -> None:
        self._cut, self._lines, self._slots = cut, lines, lines + squares
        self._parts = shared((cut.teams, cut.count * self._slots))

    def put(self, sums: Buffer, squares: Buffer, thread: Expr) -> None:
        """Adds up over teams; ``sums`` [count, lines] and ``squares`` [count] are each thread's own."""
        cut, lane, team = self._cut, T.Bind(thread % TEAM), T.Bind(thread // TEAM)
        places = [(m, slot) for m in range(cut.count) for slot in range(self._slots)]
        for first in range(0, len(places), TEAM):
            some = places[first : first + TEAM]
            total = team_sums([sums[m, slot] if slot < self._lines else squares[m] for m, slot in some], lane)
            with when(lane < len(some)) if len(some) < TEAM else nullcontext():
                T.buffer_store(self._parts, total, [team, first + lane])

    def total(self, own: Expr, m: Expr, slot: Expr) -> Buffer:
        """See Sums."""
        total = registers(1)
        place = T.Bind(m * self._slots + slot)
        T.buffer_store(total, self._parts[own, place], [0])
        for split in range(1, self._cut.splits):
            T.buffer_store(total, total[0] + self._parts[own + split * self._cut.sets, place], [0])
        return total

    def squares(self, own: Expr, m: Expr) -> Buffer:
        """See Sums."""
        return self.total(own, m, T.int32(self._lines))


class StreamOutput:
    """The sums of a launch, from the work group's memory to y. Made at the top of a kernel."""

    def __init__(
        self, cut: Cut, options: Options, weight: WeightReader, of: dict[str, Buffer], *, awaits: bool = False
    ) -> None:
        self._cut, self._options, self._weight, self._of, self._awaits = cut, options, weight, of, awaits
        self._features = int(of["y"].shape[1])
        self._eighths = options.writes_eighths
        self._each = 2 if awaits and self._eighths else 1  # neighbouring features that a thread makes together
        self._turns = -(-cut.count * cut.features // (self._each * cut.threads))
        self._residual = registers(self._turns)  # of each of a thread's outputs, where it is awaited

    def store(self, sums: Sums, group: Expr, thread: Expr) -> None:
        """Ends the work group, all of which sees ``sums``."""
        if self._awaits:
            for number in range(self._turns):
                self._store_unit(sums, number, group, thread)
            return
        with T.serial(0, self._turns) as turn:
            self._store_unit(sums, turn, group, thread)

    def ask(self, group: Expr, thread: Expr) -> None:
        """Awaits the residual, long before the product is there."""
        if not self._options.residual:
            return
        places = []
        for turn in range(self._turns):
            m, place = self._unit(turn, thread)
            feature = T.min(group * self._cut.features + place, self._features - 1)
            places.append((T.Bind(self._residual_row(T.min(m, self._cut.count - 1))), T.Bind(feature)))
        source = self._of["residual"]
        await_numbers([Ask(self._residual, (turn,), source, place) for turn, place in enumerate(places)])

    def _unit(self, turn: Expr | int, thread: Expr) -> tuple[Expr, Expr]:
        """Row of x and place among the work group's features of an output, the first of some neighbours."""
        unit = T.Bind((turn * self._cut.threads + thread) * self._each)
        return T.Bind(unit // self._cut.features), T.Bind(unit % self._cut.features)

    def _store_unit(self, sums: Sums, turn: Expr | int, group: Expr, thread: Expr) -> None:
        cut, (m, place) = self._cut, self._unit(turn, thread)
        feature = T.Bind(group * cut.features + place)
        with when(T.And(m < cut.count, feature < self._features)):
            kept = self._residual[turn] if self._awaits and self._options.residual else None
            values = []
            for i in range(self._each):
                own, output = T.Bind((place + i) // cut.outputs), T.Bind((place + i) % cut.outputs)
                values.append(self._finished(sums, (own, m, output), feature + i, kept))
            self._put([cut.first + m, feature], values)

    def _put(self, index: list[Expr], values: list[Expr]) -> None:
        y = self._of["y"]
        if len(values) == 2:
            publish_pair(y, index, *values)
        elif self._awaits:
            publish(y, index, values[0])
        else:
            T.buffer_store(y, as_eighths(values[0]) if self._eighths else values[0], index)

    def _finished(self, sums: Sums, which: tuple[Expr, Expr, Expr], feature: Expr, residual: Expr | None) -> Expr:
        options, (own, m, output) = self._options, which
        # On its way while sums are added up.
        if options.residual and residual is None:
            residual = _read_early(self._of["residual"][self._residual_row(m), feature])
        bias = _read_early(self._of["bias"][feature]) if options.bias else None
        inverse = self._inverse_root(sums, own, m)
        value = self._total(sums, which, feature, inverse)
        if options.activation is not None:
            second = (own, m, self._cut.outputs + output)
            up = self._total(sums, second, feature + self._features, inverse)
            value = ACTIVATIONS[options.activation](value) * up
        value = value if bias is None else value + bias
        return value if residual is None else value + residual

    def _residual_row(self, m: Expr) -> Expr:
        """The residual's for row m of the launch's."""
        return self._options.residual_row + (self._cut.first + m) * self._options.residual_step

    def _total(self, sums: Sums, which: tuple[Expr, Expr, Expr], row: Expr, inverse: Expr | None) -> Expr:
        """The product of a row of x with a row of the weight."""
        total = sums.total(*which)
        if self._weight.form.format is not None and not self._weight.form.by_group:
            T.buffer_store(total, total[0] * self._weight.factor("scale", row, T.int32(0)), [0])
        return total[0] if inverse is None else total[0] * inverse

    def _inverse_root(self, sums: Sums, own: Expr, m: Expr) -> Expr | None:
        """What the norm scales a row of x by."""
        if self._options.norm_eps is None:
            return None
        squares = sums.squares(own, m)
        mean = squares[0] * T.float32(1.0 / self._weight.form.depth) + T.float32(self._options.norm_eps)
        T.buffer_store(squares, T.float32(1.0) / T.sqrt(mean), [0])
        return squares[0]


def _read_early(value: Expr) -> Expr:
    """``value``, read here and kept until it is used."""
    kept = registers(1)
    T.buffer_store(kept, value, [0])
    return kept[0]
