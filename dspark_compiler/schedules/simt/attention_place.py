"""Which query rows and slots a work group of attention takes, and how its threads share them out."""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.attention_totals import TEAMS
from dspark_compiler.schedules.simt.cache_rows import Problem, Span
from dspark_compiler.schedules.simt.stored import elements_at_once
from dspark_compiler.schedules.simt.threads import TEAM
from dspark_compiler.schedules.tir import Expr

AT_ONCE = 4  # slots that a team takes in a turn
TURN = TEAMS * AT_ONCE  # slots that a work group takes in a turn

_MOST_REGISTERS = 64  # floats of queries and of sums that a thread holds
_MOST_ROWS = 4  # query rows written out one after the other
_MANY_GROUPS = 96  # work groups that a large device still has room for beside those of products


def rows_together(problem: Problem) -> int:
    """Query rows a work group holds at a time: few, as long as a device has room for all work groups of a part."""
    shape = problem.shape
    most = min(problem.rows, _MOST_ROWS, _MOST_REGISTERS * TEAM // (shape.head_dim + shape.value_dim))
    for count in range(1, most):
        if shape.rows * shape.kv_heads * -(-problem.rows // count) <= _MANY_GROUPS:
            return count
    return max(1, most)


@dataclass(frozen=True)
class Place:
    """Query rows first..first+count of key/value head ``head`` in the call's row ``row``, and who asks."""

    problem: Problem
    span: Span
    row: Expr
    head: Expr
    first: Expr
    count: int
    thread: Expr

    @property
    def lane(self) -> Expr:
        """Of the team."""
        return self.thread % TEAM

    @property
    def team(self) -> Expr:
        """Of the work group."""
        return self.thread // TEAM

    def query(self, i: int | Expr) -> tuple[Expr, Expr]:
        """Token and query head of a row; of rows there are not those of the last."""
        m = T.Bind(T.min(self.first + i, self.problem.rows - 1))
        group = self.problem.shape.group
        return T.Bind(m // group), T.Bind(self.head * group + m % group)

    def limit(self, i: int) -> Expr:
        """Slots from here on a row does not see."""
        if not self.problem.causal:
            return self.span.end
        return T.min(self.span.used + self.query(i)[0] + 1, self.span.end)

    def bounds(self) -> tuple[Expr, Expr]:
        """Slots that any of the rows may see: from the first, a multiple of ``TURN``, up to before the second."""
        span, shape, scoring = self.span, self.problem.shape, self.problem.scoring
        if not self.problem.causal:
            return T.int32(0), span.end
        tokens = T.Bind((self.first + self.count - 1) // shape.group)
        stop = T.Bind(T.min(span.end, span.used + T.min(tokens, shape.width - 1) + 1))
        if not scoring.window or self.problem.form.slot_position:
            return T.int32(0), stop
        seen = T.max(span.used + self.first // shape.group + (1 - scoring.window), 0)
        return T.Bind(seen // TURN * TURN), stop


@dataclass(frozen=True)
class Pieces:
    """How a team's lanes share a row of a head: ``count`` accesses of ``each`` elements a lane, side by side."""

    each: int
    count: int

    @staticmethod
    def of(dim: int, dtype: str) -> "Pieces":
        """Those of a row of ``dim`` elements stored as ``dtype``."""
        own = dim // TEAM
        each = min(elements_at_once(dtype), own & -own)
        return Pieces(each, own // each)

    def element(self, lane: Expr, piece: int) -> Expr:
        """The first element of the row that a lane's access number ``piece`` brings."""
        return (piece * TEAM + lane) * self.each

    def all(self, lane: Expr) -> list[tuple[int, Expr, int]]:
        """For each access of a lane: the number of its first element among the lane's, which this is, how many."""
        return [(piece * self.each, self.element(lane, piece), self.each) for piece in range(self.count)]
