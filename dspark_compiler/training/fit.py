"""Fits one layer's surrogate, and says how well it predicts."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor
from torch.nn.functional import mse_loss

from dspark_compiler.models.surrogate import Affine, apply, stored
from dspark_compiler.training.rows import Rows

# Found on SmolLM2-135M, judged by documents taken from the training ones. With little decay a network learns forty
# documents by heart, and its R^2 on others is 0.03 to 0.07 lower.
_BATCH = 512
_LEARNING_RATE = 2e-3
_WEIGHT_DECAY = 3.0
_WARM_UP = 0.05  # of the steps


@dataclass(frozen=True)
class Quality:
    """How predictions follow a target, averaged over heads; a head whose target is always the same counts as 0."""

    correlation: float
    r2: float


def fit(rows: Rows, hidden: int, steps: int, generator: Generator) -> tuple[Affine, ...]:
    """The network that predicts ``rows.target`` from ``rows.hidden`` with the least squared error.

    ``hidden`` units between the two linears, 0 for a single linear. It learns on inputs and targets of mean 0 and
    variance 1; the weights returned take and give them as they are, and are float16 numbers.
    """
    centre, spread = _moments(rows.hidden)
    target_centre, target_spread = _moments(rows.target)
    target = (rows.target - target_centre) / target_spread
    sizes = [rows.hidden.shape[1], *([hidden] if hidden else []), rows.target.shape[1]]
    parameters: list[Tensor] = []
    for inputs, outputs in pairwise(sizes):
        parameters += [torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs), torch.zeros(outputs)]
    parameters[-2].zero_()  # predicts the mean to begin with
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    for _ in range(steps):
        batch = torch.randint(len(target), (_BATCH,), generator=generator)
        predicted = apply(_affines(parameters), (rows.hidden[batch] - centre) / spread)
        optimizer.zero_grad()
        mse_loss(predicted, target[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return _in_units(_affines([p.detach() for p in parameters]), centre, spread, target_centre, target_spread)


def quality(predicted: Tensor, target: Tensor) -> Quality:
    """How well predicted [N,G] follows target [N,G]."""
    error = (predicted - target).pow(2).sum(0)
    a, b = predicted - predicted.mean(0), target - target.mean(0)
    varies = b.pow(2).sum(0) > 1e-6 * len(target)
    lengths = a.norm(dim=0) * b.norm(dim=0)
    correlation = torch.where(varies, (a * b).sum(0) / lengths.clamp(min=1e-12), 0.0)
    r2 = torch.where(varies, 1 - error / b.pow(2).sum(0).clamp(min=1e-12), 0.0)
    return Quality(float(correlation.mean()), float(r2.mean()))


def _affines(parameters: list[Tensor]) -> tuple[Affine, ...]:
    return tuple(Affine(w, b) for w, b in zip(parameters[::2], parameters[1::2], strict=True))


def _in_units(
    affines: tuple[Affine, ...], centre: Tensor, spread: Tensor, target_centre: Tensor, target_spread: Tensor
) -> tuple[Affine, ...]:
    """The same network for inputs and targets as they are, not brought to mean 0 and variance 1.

    Weights are rounded as files round them, and biases made for the rounded ones: the centre may be large.
    """
    *before, last = affines
    scaled = Affine(last.weight * target_spread[:, None], last.bias * target_spread + target_centre)
    first, *after = *before, scaled
    weight = stored(first.weight / spread)
    return Affine(weight, first.bias - weight @ centre), *(Affine(stored(a.weight), a.bias) for a in after)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each column; those that hardly vary are left at their scale."""
    spread = values.std(0, correction=0)
    return values.mean(0), torch.where(spread > 1e-4 * spread.amax(), spread, 1.0)


def _rate(step: int, steps: int) -> float:
    """Learning rate, as a part of the highest: rises for a moment, then falls as a cosine."""
    warm = max(1, int(_WARM_UP * steps))
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
