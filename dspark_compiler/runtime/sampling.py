"""From logits to a token: the settings, the distribution they make, and drawing from it.

Semantics and order are those of transformers: repetition penalty, temperature, top-k, top-p, min-p.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.errors import InputError

_FIRST_CANDIDATES = 256  # the nucleus is usually smaller
_GROUP = 32  # values whose maximum stands for them
_MOST = 2**31 - 1  # of an int32


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt.

    Temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off. A seed reproduces a sequence
    whatever it is batched with; without one each sequence differs.

    Raises:
        InputError: a value out of range, naming it.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        checks = (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "above 0"),
            ("seed", self.seed, self.seed is None or 0 <= self.seed < 1 << 64, "between 0 and 2^64 - 1"),
        )
        for name, value, holds, wanted in checks:
            if not holds:
                raise InputError(f"{name} {value}: must be {wanted}")
        if not isinstance(self.stop, tuple) or not all(self.stop):
            raise InputError(f"stop {self.stop!r}: must be a tuple of strings, none of them empty")


_GREEDY = SamplingParams()


@dataclass(frozen=True)
class SamplingInputs:
    """The settings of all sequences of a batch as entry points take them: a number a sequence each, [B].

    ``repetition_penalty`` is not among them: what is drafted would have to be penalized token by token.
    """

    temperature: NDArray[np.float32]
    top_k: NDArray[np.int32]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]

    @classmethod
    def of(cls, batch: int, params: Mapping[int, SamplingParams]) -> Self:
        """For sequences with these settings by row, all others greedy; cannot be changed, so it is sent once."""
        each = [params.get(row, _GREEDY) for row in range(batch)]
        made = cls(
            np.array([one.temperature for one in each], np.float32),
            np.array([min(one.top_k, _MOST) for one in each], np.int32),
            np.array([one.top_p for one in each], np.float32),
            np.array([one.min_p for one in each], np.float32),
        )
        for array in vars(made).values():
            array.flags.writeable = False
        return made

    def as_inputs(self) -> dict[str, NDArray[Any]]:
        """By the names of inputs."""
        return dict(vars(self))


def probabilities(logits: NDArray[np.float32], params: SamplingParams, history: Sequence[int]) -> NDArray[np.float32]:
    """The distribution [V] the next token is drawn from, given logits [V] and all tokens so far.

    Temperature 0 puts everything on the most likely token, the first one among equals.
    """
    scores = penalized(logits, params.repetition_penalty, history)
    if params.temperature == 0:
        result = np.zeros_like(scores)
        result[scores.argmax()] = 1
        return result
    scores /= np.float32(params.temperature)
    tokens: NDArray[np.intp] | slice = slice(None)
    if 0 < params.top_k < scores.size:
        tokens = _highest(scores, params.top_k)
    weights = np.exp(scores[tokens] - scores.max())
    if params.top_p < 1:
        weights[~_nucleus(weights, params.top_p)] = 0
    if params.min_p > 0:
        weights[weights < np.float32(params.min_p)] = 0  # the most likely token has weight 1
    result = np.zeros_like(scores)
    result[tokens] = weights / weights.sum(dtype=np.float64)
    return result


def penalized(logits: NDArray[np.float32], penalty: float, history: Sequence[int]) -> NDArray[np.float32]:
    """A float32 copy of logits [V] in which the tokens of ``history`` are less likely (Keskar et al. 2019, eq. 2)."""
    scores = logits.astype(np.float32)
    if penalty != 1 and len(history):
        seen = np.asarray(history)
        values = scores[seen]
        scores[seen] = np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty))
    return scores


def _highest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices of the ``count`` highest values and of the equals of the last one, ascending.

    Sorting all of a large vocabulary can take longer than a small model's step. So values are put in groups: no value
    sought is below the ``count``-th highest of the groups' maxima, and few others reach that.
    """
    found: NDArray[np.intp] = np.arange(values.size)
    groups = values.size // _GROUP
    if count <= groups:
        maxima = values[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        found = np.flatnonzero(values >= np.partition(maxima, -count)[-count])
    reaching = values[found]
    highest: NDArray[np.intp] = found[reaching >= np.partition(reaching, -count)[-count]]
    return highest


def _nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.bool_]:
    """The fewest most likely tokens that hold ``top_p`` of the weight (Holtzman et al. 2020), at least one."""
    wanted = top_p * float(weights.sum(dtype=np.float64))
    count = min(_FIRST_CANDIDATES, weights.size)
    top = _highest(weights, count)
    while count < weights.size and float(weights[top].sum(dtype=np.float64)) < wanted:
        count = min(count * 8, weights.size)
        top = _highest(weights, count)
    top = top[np.argsort(-weights[top], kind="stable")]
    above = np.cumsum(weights[top], dtype=np.float64) - weights[top]  # weight of the more likely ones
    keep = np.zeros(weights.size, np.bool_)
    keep[top[above < wanted]] = True
    return keep


def next_token(
    logits: NDArray[np.float32], params: SamplingParams, history: Sequence[int], generator: np.random.Generator
) -> int:
    """The token that follows, drawn from ``probabilities``; greedy takes no number from the stream."""
    if params.temperature == 0:
        return int(penalized(logits, params.repetition_penalty, history).argmax())
    return sample(probabilities(logits, params, history), generator)


def make_generator(seed: int | None) -> np.random.Generator:
    """A random stream for one sequence; counter-based, so it is the same on every machine."""
    return np.random.Generator(np.random.Philox(seed))


def sample(probs: NDArray[np.float32], generator: np.random.Generator) -> int:
    """Draws a token from a distribution [V]; takes one number from the stream, never a token of probability 0."""
    return pick(probs, generator.random())


def pick(probs: NDArray[np.float32], number: float) -> int:
    """The first token up to which more than ``number``, in [0, 1), of a distribution [V] lies."""
    ladder = np.cumsum(probs, dtype=np.float64)
    # The product can round up to the last step itself, past the last token.
    height = min(number * ladder[-1], np.nextafter(ladder[-1], 0))
    return int(np.searchsorted(ladder, height, side="right"))
