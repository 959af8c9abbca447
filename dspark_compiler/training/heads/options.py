"""How heads are trained: the options of ``dspark heads train``, checked."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from dspark_compiler.errors import InputError
from dspark_compiler.models.drafters.config import SEQUENTIAL_HEADS, SequentialHead


@dataclass(frozen=True)
class GenerationOptions:
    """What the target writes: ``samples`` answers a prompt of up to ``new_tokens``, ``max_length`` with the prompt."""

    samples: int = 1
    temperature: float = 1.0
    new_tokens: int = 256
    max_length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least({"--samples": self.samples, "--new-tokens": self.new_tokens}, 1)
        _at_least({"--max-length": self.max_length}, 4)
        _at_least({"--seed": self.seed}, 0)
        if not 0 < self.temperature < math.inf:
            raise InputError(f"--temperature {self.temperature}: must be above 0")


@dataclass(frozen=True)
class DrafterOptions:
    """What is trained; ``taps`` None spreads four over the target's layers.

    ``init`` is "target", "random" or a folder of heads to go on from.
    """

    drafter_type: str = "dspark"
    layers: int = 2
    block_size: int = 7
    taps: tuple[int, ...] | None = None
    markov_rank: int = 64
    head_type: SequentialHead = "vanilla"
    confidence: bool = True
    init: str = "target"

    def __post_init__(self) -> None:
        if self.drafter_type != "dspark":
            raise InputError(f"--type {self.drafter_type}: only dspark heads can be trained; give --type dspark")
        if self.head_type not in SEQUENTIAL_HEADS:
            raise InputError(f"--head-type {self.head_type}: unknown; give one of {', '.join(SEQUENTIAL_HEADS)}")
        _at_least({"--layers": self.layers, "--block-size": self.block_size}, 1)
        _at_least({"--markov-rank": self.markov_rank}, 0)


@dataclass(frozen=True)
class FitOptions:
    """How it is trained: ``steps`` of ``batch`` sequences with ``anchors`` blocks each, or for ``minutes``.

    ``loss_decay`` is the gamma of the loss weights exp(-(k-1)/gamma), None takes the block size.
    """

    steps: int = 2000
    minutes: float | None = None
    batch: int = 32
    anchors: int = 64
    lr: float = 6e-4
    loss_decay: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least({"--steps": self.steps, "--batch": self.batch, "--anchors": self.anchors}, 1)
        for option, value in (("--minutes", self.minutes), ("--lr", self.lr), ("--loss-decay", self.loss_decay)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{option} {value}: must be above 0")


@dataclass(frozen=True)
class TrainingOptions:
    """All of it; ``device`` and ``checkpoint_every`` (seconds) change nothing about the result."""

    generation: GenerationOptions = field(default_factory=GenerationOptions)
    drafter: DrafterOptions = field(default_factory=DrafterOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    device: str | None = None
    checkpoint_every: float = 60.0

    def __post_init__(self) -> None:
        if not self.checkpoint_every >= 0:
            raise InputError(f"--checkpoint-every {self.checkpoint_every}: must be at least 0")

    def to_json(self) -> dict[str, Any]:
        """What decides the result, by the groups above."""
        return {"generation": asdict(self.generation), "drafter": asdict(self.drafter), "fit": asdict(self.fit)}


def _at_least(values: dict[str, int], least: int) -> None:
    for option, value in values.items():
        if value < least:
            raise InputError(f"{option} {value}: must be at least {least}")
