"""How a budget of slots is divided: protected edges, slots freed at a time, the widest chunk a prompt is read in."""

from dataclasses import dataclass
from itertools import count

from dspark_compiler.errors import InputError

# The first tokens draw attention whatever they say (StreamingLLM, arXiv 2309.17453).
_SINKS = 4
# Protecting an edge on both sides recovers most of what scores alone lose (arXiv 2605.18053).
_RECENT_SHARE = 10
# Freed at a time: a sixteenth costs 3 % of the budget on average, and pays for scoring with as many tokens.
_BLOCK_SHARE = 16
_MAX_BLOCK = 128
# A chunk needs as many free slots as it has tokens; wide ones would empty the cache before they fill it.
_CHUNK_SHARE = 8


@dataclass(frozen=True)
class KVBudget:
    """Slots of a layer, all counted in tokens.

    Attributes:
        slots: physical slots a sequence.
        first: tokens at the sequence's beginning that are never evicted.
        last: newest tokens that are never evicted.
        block: slots freed at a time while decoding.
        chunk: the widest prefill.
    """

    slots: int
    first: int
    last: int
    block: int
    chunk: int

    @classmethod
    def divide(cls, slots: int, verify_width: int) -> "KVBudget":
        """The division of a budget, with room for ``verify_width`` unconfirmed tokens between evictions.

        Raises:
            InputError: the budget is smaller than its edges and what has to be free at a time.
        """
        budget = cls._divided(slots, verify_width)
        if slots < budget.floor:
            smallest = next(n for n in count(slots) if n >= cls._divided(n, verify_width).floor)
            raise InputError(
                f"--kv-budget {slots}: {budget.first} first and {budget.last} last tokens are never evicted and "
                f"{budget.chunk} slots must be free at a time; give at least {smallest}"
            )
        return budget

    @classmethod
    def _divided(cls, slots: int, verify_width: int) -> "KVBudget":
        block = max(verify_width, min(slots // _BLOCK_SHARE, _MAX_BLOCK))
        return cls(slots, _SINKS, max(block, slots // _RECENT_SHARE), block, max(block, slots // _CHUNK_SHARE))

    @property
    def floor(self) -> int:
        """Slots it cannot do without: both edges, and room for a chunk."""
        return self.first + self.last + self.chunk
