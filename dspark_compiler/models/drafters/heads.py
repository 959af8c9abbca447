"""Decode heads as a whole: a drafter, the target it belongs to, its calibration, and how it was made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dspark_compiler.models.drafters.base import Drafter


@dataclass(frozen=True)
class TargetIdentity:
    """Which model heads were made for. ``tokenizer_sha256`` is frontend/fingerprint.py's, None without one."""

    name: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    tokenizer_sha256: str | None


@dataclass(frozen=True)
class Calibration:
    """How confidences are scaled (DSpark, sec. 3.2.1; Platt 1999), all per position of the block.

    ``temperatures`` divide confidence logits, ``shifts`` are added then; empty where scaling, or shifting besides, did
    not help and was not applied. ``ece_before`` and ``ece_after`` are the expected calibration error of the cumulative
    product, ``auc`` that of each confidence.
    """

    temperatures: tuple[float, ...]
    ece_before: tuple[float, ...]
    ece_after: tuple[float, ...]
    auc: tuple[float, ...]
    shifts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Heads:
    """A drafter with float32 weights and all that is known of it."""

    drafter: Drafter
    target: TargetIdentity
    calibration: Calibration | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
