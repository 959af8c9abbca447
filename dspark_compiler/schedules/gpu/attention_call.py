"""An attention call as kernels see it.

The query rows of a key/value head are numbered token by token: row m is token m // group, query head m % group of the
head's ``group``. Virtual slots count the live slots first and the scratch rows behind them: slot s is live where
s < used, scratch row s - used from there on. A token's own slot is used + its number either way.
"""

from dataclasses import dataclass, field

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.tir import Buffer, Expr, when


@dataclass(frozen=True)
class Problem:
    """What is asked for; ``dtype`` is that of keys and values which are not quantized."""

    shape: AttentionShape
    scoring: Scoring
    form: CacheForm
    dtype: str

    @property
    def rows(self) -> int:
        """Query rows of a key/value head."""
        return self.shape.width * self.shape.group

    @property
    def slots(self) -> int:
        """Virtual slots a sequence can have."""
        return self.shape.slots + self.shape.scratch


@dataclass(frozen=True)
class Tensors:
    """Buffers of a call by the operator's names."""

    of: dict[str, Buffer] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Buffer:
        return self.of[name]

    def get(self, name: str) -> Buffer | None:
        """The buffer, None if the call has none of that name."""
        return self.of.get(name)


@dataclass(frozen=True)
class Span:
    """The virtual slots of one sequence, int32 expressions."""

    sequence: Expr  # row of the cache
    used: Expr  # live slots before the call
    length: Expr  # confirmed tokens
    end: Expr  # one past the last slot that anyone may see


class NewSlot:
    """Where a new token's key and value go: to the next live slots, or to scratch where the call has one."""

    def __init__(self, problem: Problem, tensors: Tensors, span: Span, token: Expr) -> None:
        self._problem, self._tensors, self._span, self._token = problem, tensors, span, token
        self._kind = "scratch" if problem.shape.scratch else "cache"
        self._slot = T.Bind(token if problem.shape.scratch else span.used + token)
        self.fits = span.used + token < span.end
        """Whether the token is stored at all: it is one of the call's, and there is room for it."""

    def store_position(self, head: Expr, condition: Expr) -> None:
        """Notes the position of a token in a live slot, where slots keep theirs and ``condition`` holds."""
        positions = self._tensors.get("slot_position")
        if positions is not None and self._kind == "cache":
            with when(condition):
                T.buffer_store(positions, self._span.length + self._token, [self._span.sequence, head, self._slot])
