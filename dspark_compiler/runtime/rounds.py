"""What passes between the parts of a speculative round.

Shapes: B sequences the artifact holds, g tokens of a draft, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Drafts:
    """Tokens that may follow each sequence's last one.

    Attributes:
        tokens: int64 [B,g].
        counts: how many of a sequence's tokens are drafts, int64 [B].
        probs: what they were drawn from, float32 [B,g,V] as an entry point returned it; None where they are certain.
        confidence: logits that each stays if those before it do, float32 [B,g]; None where nobody says.
    """

    tokens: NDArray[np.int64]
    counts: NDArray[np.int64]
    probs: Any | None = None
    confidence: NDArray[np.float32] | None = None


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
