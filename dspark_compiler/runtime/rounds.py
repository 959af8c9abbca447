"""What passes between the parts of a speculative round.

Shapes: B sequences the artifact holds, g tokens of a draft, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspark_compiler.runtime.calls import Columns, Fetched


@dataclass(frozen=True)
class Step:
    """What a plain step drew.

    Attributes:
        tensor: the token after each sequence's last one, int64 [B], on the device.
        first_logits: the target's logits [V] after a sequence's last token, for those who draw by rules of their own;
            to be read before the next step is made.
    """

    tensor: Any
    _fetched: Fetched
    first_logits: Callable[[int], NDArray[np.float32]]

    @property
    def following(self) -> NDArray[np.int64]:
        """The same on the host, int64 [B]; waits for it."""
        (tokens,) = self._fetched.arrays()
        return tokens


class LateRows(Sequence[NDArray[np.float32]]):
    """Some rows of an array that may be on its way to the host; how many is known, looking at one waits."""

    def __init__(self, array: Callable[[], NDArray[np.float32]], rows: Sequence[int]) -> None:
        self._array = array
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        return self._array()[self._rows[place]]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self._array()[row] for row in self._rows)


class Drafts:
    """Tokens that may follow each sequence's last one.

    Attributes:
        counts: how many of a sequence's tokens are drafts, int64 [B].
        probs: what they were drawn from, float32 [B,g,V] as an entry point returned it; None where they are certain.
        late: whether the host may have to wait for the rest.
        has_confidence: whether somebody says how sure they are.
    """

    def __init__(
        self,
        tokens: NDArray[np.int64],
        counts: NDArray[np.int64],
        probs: Any | None = None,
        confidence: NDArray[np.float32] | None = None,
    ) -> None:
        """Drafts that the host knows: tokens [B,g], confidence [B,g]."""
        found = (tokens,) if confidence is None else (tokens, confidence)
        self._fetched = Fetched(lambda: found)
        self._tensor: Any | None = None
        self.counts = counts
        self.probs = probs
        self.late = False
        self.has_confidence = confidence is not None

    @classmethod
    def on_device(
        cls, fetched: Fetched, tensor: Any, counts: NDArray[np.int64], probs: Any, *, has_confidence: bool, late: bool
    ) -> "Drafts":
        """Drafts as an entry point made them; ``fetched`` tokens, and confidence if there is some."""
        drafts = cls.__new__(cls)
        drafts._fetched, drafts._tensor, drafts.counts, drafts.probs = fetched, tensor, counts, probs
        drafts.has_confidence, drafts.late = has_confidence, late
        return drafts

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Int64 [B,g]; waits for them."""
        return self._fetched.arrays()[0]

    @property
    def confidence(self) -> NDArray[np.float32] | None:
        """Logits that each stays if those before it do, float32 [B,g]; None where nobody says. Waits for them."""
        return self._fetched.arrays()[1] if self.has_confidence else None

    def confidences(self, rows: Sequence[int]) -> LateRows | None:
        """The same of some sequences; waits when it is looked at."""
        return LateRows(lambda: self._fetched.arrays()[1], rows) if self.has_confidence else None

    def after(self, anchors: ArrayLike, width: int) -> NDArray[np.int64] | Columns:
        """Each anchor [B] and the first width - 1 of its drafts, as an input [B,width]; waits for nothing.

        Where there are fewer drafts, any token fills the rest.
        """
        if self._tensor is not None:
            return Columns(anchors, self._tensor)
        last = self.tokens.shape[1] - 1
        places = np.minimum(np.arange(width - 1), last)
        return np.column_stack([np.asarray(anchors), self.tokens[:, places]])


@dataclass(frozen=True)
class Verdict:
    """What a verify made of drafts.

    Attributes:
        accepted: drafts that stay, int32 [B].
        following: the token after them, int64 [B].
        first_logits: the target's logits [V] after a sequence's last token, for those who draw by rules of their own.
    """

    accepted: NDArray[np.int32]
    following: NDArray[np.int64]
    first_logits: Callable[[int], NDArray[np.float32]]


@dataclass(frozen=True)
class RoundRecord:
    """What became of one sequence's drafts in one round.

    Attributes:
        row: the sequence.
        drafted: drafts that were looked at.
        accepted: those of them that stayed.
        confidence_logits: float32 [g], None where nobody says.
    """

    row: int
    drafted: int
    accepted: int
    confidence_logits: NDArray[np.float32] | None
