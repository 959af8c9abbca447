"""What passes between the parts of a speculative round, and from one round to the next.

Where a device has its own clock, the next round can be made before the host knows what became of this one.

Shapes: B sequences the artifact holds, g tokens of a draft, N tokens a verify takes, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.runtime.calls import Columns, Fetched


@dataclass(frozen=True)
class Anchors:
    """Where a round begins, [B] each: numbers of the host, or tensors on the device that it need not know yet.

    Attributes:
        tokens: each sequence's last token, which is not confirmed yet; int64.
        positions: their positions, int64.
        lengths: the confirmed tokens before them, int32.
    """

    tokens: Any
    positions: Any
    lengths: Any


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
        self._tokens = tokens
        self._made: Mapping[str, Any] | None = None
        self._fetched = Fetched(lambda: () if confidence is None else (confidence,))
        self.counts = counts
        self.probs = probs
        self.late = False
        self.has_confidence = confidence is not None

    @classmethod
    def on_device(cls, made: Mapping[str, Any], counts: NDArray[np.int64], fetched: Fetched, *, late: bool) -> "Drafts":
        """Drafts as the entry point ``draft`` made them; ``fetched`` are its ids and, if there is one, confidence."""
        drafts = cls.__new__(cls)
        drafts._made, drafts._fetched, drafts.counts, drafts.probs = made, fetched, counts, made["probs"]
        drafts.has_confidence, drafts.late = "confidence" in made, late
        return drafts

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Int64 [B,g]; waits for them."""
        return self._tokens if self._made is None else self._fetched.arrays()[0][:, 1:]

    @property
    def confidence(self) -> NDArray[np.float32] | None:
        """Logits that each stays if those before it do, float32 [B,g]; None where nobody says. Waits for them."""
        return self._fetched.arrays()[-1] if self.has_confidence else None

    def confidences(self, rows: Sequence[int]) -> LateRows | None:
        """The same of some sequences; waits when it is looked at."""
        return LateRows(lambda: self._fetched.arrays()[-1], rows) if self.has_confidence else None

    def verify_inputs(self, anchors: Anchors, counts: NDArray[np.int64], width: int) -> dict[str, Any]:
        """What a verify of the anchors and first ``counts`` drafts takes besides lengths; waits for nothing.

        Where there are fewer drafts, any token fills the rest.
        """
        if self._made is not None:
            return {name: Columns(self._made[name]) for name in ("input_ids", "positions")}
        places = np.minimum(np.arange(width - 1), self._tokens.shape[1] - 1)
        ids = np.column_stack([np.asarray(anchors.tokens), self._tokens[:, places]])
        # Padding repeats the last real position, so that lookups by it stay within their tables.
        real = np.minimum(np.arange(width), np.maximum(counts, 0)[:, None])
        return {"input_ids": ids, "positions": np.asarray(anchors.positions)[:, None] + real}

    def lengths(self, anchors: Anchors) -> Any:
        """The confirmed tokens before the anchors: ``draft`` hands them on, since accept makes new ones."""
        return anchors.lengths if self._made is None else self._made["length"]


@dataclass(frozen=True)
class Verdict:
    """What a verify made of drafts.

    Attributes:
        anchors: where the next round begins, on the device.
        first_logits: the target's logits [V] after a sequence's last token, for those who draw by rules of their own;
            to be read before the next round is made.
    """

    anchors: Anchors
    _fetched: Fetched
    first_logits: Callable[[int], NDArray[np.float32]]

    @property
    def accepted(self) -> NDArray[np.int32]:
        """Drafts that stay, int32 [B]; waits for them."""
        kept: NDArray[np.int32] = np.maximum(self._fetched.arrays()[0] - 1, 0)
        return kept

    @property
    def following(self) -> NDArray[np.int64]:
        """The token after them, int64 [B]; waits for it."""
        return self._fetched.arrays()[1]


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
