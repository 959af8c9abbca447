"""Fits a drafter to the target's sequences, step by step, so that it can stop anywhere and go on."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from dspark_compiler.models.drafters.dspark import DSparkDrafter
from dspark_compiler.training.heads.anchors import Batch, Sequences, make_batch
from dspark_compiler.training.heads.blocks import judge_blocks
from dspark_compiler.training.heads.interrupts import Interrupt
from dspark_compiler.training.heads.options import FitOptions
from dspark_compiler.training.heads.quality import Quality, Tally, judge
from dspark_compiler.training.heads.report import Report
from dspark_compiler.training.heads.target import FrozenTarget

_WARM_UP = 0.04  # of all training
_CLIP = 1.0
_BETAS = (0.9, 0.95)
_GROUP = 8  # batches whose sequences are sorted by length, so that less is padding
_NOTE_EVERY = 1.0  # seconds
_LOOK_AHEAD = 50  # steps that reach their loss before the host goes on


class Fit:
    """A drafter in training; everything random depends on the seed and the step alone."""

    def __init__(self, drafter: DSparkDrafter, target: FrozenTarget, sequences: Sequences, options: FitOptions) -> None:
        self.drafter, self._target, self._sequences, self._options = drafter, target, sequences, options
        self.decay = options.loss_decay or float(drafter.config.block_size)
        self.step, self.seconds = 0, 0.0
        fused = {"fused": True} if target.device.type == "cuda" else {}
        self._parameters = [p for p in drafter.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=options.lr, betas=_BETAS, weight_decay=0.0, **fused)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda _step: rate(self.progress))

    @property
    def progress(self) -> float:
        """How much of the training is done, 0 to 1."""
        if self._options.minutes is not None:
            return min(1.0, self.seconds / (60 * self._options.minutes))
        return min(1.0, self.step / self._options.steps)

    def state(self) -> dict[str, Any]:
        """What ``restore`` takes."""
        return {
            "drafter": self.drafter.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self.drafter.load_state_dict(state["drafter"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.step, self.seconds = state["step"], state["seconds"]

    def run(self, interrupt: Interrupt, keep: Callable[[], None], keep_every: float, report: Report) -> None:
        """Trains to the end; ``keep`` is called every ``keep_every`` seconds and when it stops.

        Raises:
            KeyboardInterrupt: ``interrupt`` asks for it, after ``keep``.
        """
        tally = Tally(self.drafter.config.block_size)
        noted = kept = time.monotonic()
        blocks = 0
        batches = self._batches()
        report("train", self._done(), 1000)
        while self.progress < 1:
            began = time.monotonic()
            blocks += self._take_step(next(batches), tally)
            if len(tally.sums) >= _LOOK_AHEAD or began - noted > _NOTE_EVERY:
                quality = tally.quality()  # waits for the device, so that seconds are those of the work
                now = time.monotonic()
                report.note(self._note(str(quality), blocks / (now - noted)))
                noted, blocks = now, 0
                report("train", self._done(), 1000)
            self.seconds += time.monotonic() - began
            if interrupt.asked or time.monotonic() - kept > keep_every:
                keep()
                kept = time.monotonic()
            if interrupt.asked:
                raise KeyboardInterrupt
        keep()

    def judge(self, sequences: Sequences, *, sequential: bool = True) -> Quality:
        """How well the drafter foresees sequences; without ``sequential`` the sequential head adds nothing."""
        options = self._options
        return judge(
            self.drafter,
            self._target,
            sequences,
            options.batch,
            options.anchors,
            self.decay,
            sequential=sequential,
        )

    def _take_step(self, batch: Batch, tally: Tally) -> int:
        moved = batch.to(self._target.device)
        outcome = judge_blocks(self.drafter, self._target, moved, self.decay)
        self._optimizer.zero_grad(set_to_none=True)
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, _CLIP)
        self._optimizer.step()
        self.step += 1
        self._schedule.step()
        tally.add(outcome, moved.valid)
        return int(batch.valid[..., 0].sum())

    def _batches(self) -> Iterator[Batch]:
        """Batches from the step at hand on: each pass over the sequences has its own order."""
        size, count = self._options.batch, len(self._sequences)
        each = -(-count // size)
        while True:
            epoch, first = divmod(self.step, each)
            for index in batch_order(self._sequences, size, self._options.seed + epoch)[first:]:
                generator = torch.Generator().manual_seed((self._options.seed << 32) + self.step)
                part = self._sequences.select(index)
                yield make_batch(part, self._options.anchors, self.drafter.config.block_size, generator)

    def _done(self) -> int:
        return int(1000 * self.progress)

    def _note(self, quality: str, speed: float) -> str:
        left = self.seconds * (1 - self.progress) / max(self.progress, 1e-6)
        return f"step {self.step}: {quality}, {speed:.0f} anchors a second, {left:.0f} s left"


def batch_order(sequences: Sequences, size: int, seed: int) -> list[torch.Tensor]:
    """Indices of each batch of one pass: shuffled, of alike lengths within a batch."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(sequences), generator=generator)
    batches = []
    for group in torch.split(order, size * _GROUP):
        by_length = group[sequences.length[group].argsort(stable=True)]
        batches += list(torch.split(by_length, size))
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def rate(progress: float) -> float:
    """Learning rate as a part of the highest: rises for a moment, then falls as a cosine."""
    if progress < _WARM_UP:
        return (progress + 1e-3) / (_WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))
