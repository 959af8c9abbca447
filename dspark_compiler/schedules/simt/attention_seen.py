"""Which slots a query row sees, and which of them are new."""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.attention_place import Place
from dspark_compiler.schedules.simt.attention_totals import TEAMS
from dspark_compiler.schedules.simt.cache_rows import Tensors
from dspark_compiler.schedules.simt.threads import registers
from dspark_compiler.schedules.tir import Expr


class Seen:
    """What a work group's query rows see."""

    def __init__(self, place: Place, tensors: Tensors) -> None:
        self._place, self._tensors, self._span = place, tensors, place.span
        self._limit = registers(place.count, "int32")  # slots from here on a row does not see

    def begin(self, i: int) -> None:
        """What comes before the first question about row ``i``."""
        T.buffer_store(self._limit, self._place.limit(i), [i])

    def sees(self, i: int, slot: Expr) -> Expr:
        """Whether row ``i`` sees a slot."""
        span, problem = self._span, self._place.problem
        window, seen = problem.scoring.window, slot < self._limit[i]
        if not window:
            return seen
        token = self._place.query(i)[0]
        if not problem.form.slot_position:
            return T.And(seen, slot > span.used + token - window)
        return T.And(seen, self._position(slot) > span.length + token - window)

    def _position(self, slot: Expr) -> Expr:
        """Position of the token in ``slot``, where slots keep theirs."""
        span, slots = self._span, self._place.problem.shape.slots
        valid = T.max(T.min(slot, T.min(span.used, slots) - 1), 0)
        known = self._tensors["slot_position"][span.sequence, self._place.head, valid]
        return T.Select(slot < span.used, known, span.length + slot - span.used)


@dataclass(frozen=True)
class NewSlot:
    """The new slot that is a team's, of up to ``TEAMS`` new tokens behind ``first`` slots: past the last if none is."""

    first: Expr
    team: Expr

    @property
    def token(self) -> Expr:
        """Number of its token."""
        return T.bitwise_and(self.team - self.first, T.int32(TEAMS - 1))

    def is_at(self, slot: Expr) -> Expr:
        """Whether it is a slot of the team's."""
        return slot == self.first + self.token
