"""How well a drafter foresees its target: acceptance by position, and tokens a round.

A token drafted from p_d is accepted with probability 1 - |p_d - p_t|_1 / 2 given that those before it were.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dspark_compiler.models.drafters.dspark import DSparkDrafter
from dspark_compiler.training.heads.anchors import Sequences, make_batch
from dspark_compiler.training.heads.blocks import Outcome, judge_blocks
from dspark_compiler.training.heads.target import FrozenTarget


@dataclass(frozen=True)
class Quality:
    """``tau`` tokens a round, its own one included, over blocks that lie wholly within their sequence."""

    loss: float
    tau: float
    acceptance: tuple[float, ...]

    def __str__(self) -> str:
        by_position = " ".join(f"{value:.2f}" for value in self.acceptance)
        return f"loss {self.loss:.3f}, tau {self.tau:.2f}, acceptance {by_position}"


@dataclass
class Tally:
    """Sums over batches, kept on the device so that adding waits for nothing."""

    slots: int
    sums: list[Tensor] = field(default_factory=list)

    def add(self, outcome: Outcome, valid: Tensor) -> None:
        """One batch; valid bool [b,A,g]."""
        accept = (1 - outcome.distance / 2).clamp(0, 1)
        whole = valid[..., -1]
        rounds = 1 + accept.cumprod(-1).sum(-1)
        parts = [outcome.loss.detach(), torch.ones_like(outcome.loss), (rounds * whole).sum(), whole.sum()]
        by_slot = [(accept * valid).sum((0, 1)), valid.sum((0, 1))]
        self.sums.append(torch.cat([torch.stack([part.double() for part in parts]), *(s.double() for s in by_slot)]))

    def quality(self) -> Quality:
        """Of all since the last time; forgets them."""
        total = torch.stack(self.sums).sum(0).cpu()
        self.sums.clear()
        loss, batches, rounds, blocks = total[:4].tolist()
        accepted, seen = total[4 : 4 + self.slots], total[4 + self.slots :]
        acceptance = (accepted / seen.clamp(min=1)).tolist()
        return Quality(loss / batches, rounds / max(blocks, 1), tuple(acceptance))


@torch.no_grad()
def judge(
    drafter: DSparkDrafter,
    target: FrozenTarget,
    sequences: Sequences,
    batch: int,
    anchors: int,
    decay: float,
    *,
    sequential: bool = True,
) -> Quality:
    """Quality on sequences kept from training; without ``sequential`` the sequential head adds nothing."""
    tally = Tally(drafter.config.block_size)
    generator = torch.Generator().manual_seed(0)
    for begin in range(0, len(sequences), batch):
        part = sequences.select(torch.arange(begin, min(begin + batch, len(sequences))))
        made = make_batch(part, anchors, drafter.config.block_size, generator).to(target.device)
        if bool(made.valid.any()):
            tally.add(judge_blocks(drafter, target, made, decay, sequential=sequential), made.valid)
    return tally.quality()
