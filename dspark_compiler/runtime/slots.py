"""How many cache slots each sequence has free, kept on the host by arithmetic: nothing is read back from the device."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.artifact import PruningInfo


@dataclass
class SlotAccount:
    """Free slots of each sequence of the batch, and the tokens that no eviction has seen yet.

    Attributes:
        free: slots that every layer has free, int32 [B]; layer l uses min(length, C_l - free).
        pending: tokens confirmed since ``evict`` was called last, int32 [B].
    """

    info: PruningInfo
    batch: int
    free: NDArray[np.int32] = field(init=False)
    pending: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        self.free = np.full(self.batch, self.info.room, np.int32)
        self.pending = np.zeros(self.batch, np.int32)

    def start(self, row: int) -> None:
        """A new sequence: nothing is in its slots."""
        self.free[row] = self.info.room
        self.pending[row] = 0

    def need(self, row: int, count: int) -> int | None:
        """Slots an ``evict`` has to free before ``count`` tokens can be confirmed; 0: it only has to look; None: none.

        A chunk of a prompt that does not fit gets room for itself, a token room for a block of them.
        """
        if count > self.free[row]:
            return max(count, self.info.block)
        horizon = self.info.horizon
        return 0 if horizon is not None and self.pending[row] + count > horizon else None

    def evicted(self, row: int, need: int) -> None:
        """``evict`` was called for ``need`` slots."""
        self.free[row] = max(int(self.free[row]), need)
        self.pending[row] = 0

    def confirmed(self, row: int, count: int) -> None:
        """Tokens went to slots."""
        self.free[row] -= count
        self.pending[row] += count
