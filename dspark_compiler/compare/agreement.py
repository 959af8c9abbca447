"""Greedy tokens against eager, position by position, with the margin where they part. V: vocabulary."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.artifact import Manifest

# Two float32 implementations of one model differ in a logit by rounding; where the two likeliest tokens are closer
# than this, either may come first. Sums in another order moved SmolLM2-135M's logits by up to 9e-5 in 256 tokens.
TIE_MARGIN = 1e-3

# Types of weights whose artifacts promise eager's tokens, the others round; and types of a cache that rounds.
EXACT_DTYPES = ("float32",)
ROUNDING_KV_DTYPES = ("int8", "float8_e4m3")


def promises_equal_tokens(manifest: Manifest, length: int) -> bool:
    """Whether the tokens of a sequence of ``length`` must be eager's, ties apart: nothing is rounded, nor evicted."""
    rounds = manifest.dtype not in EXACT_DTYPES or manifest.kv.dtype in ROUNDING_KV_DTYPES
    rounds = rounds or manifest.quantization is not None
    return not rounds and length <= held_tokens(manifest)


def verifies_exactly(manifest: Manifest) -> bool:
    """Whether a verify gives the very bits of decoding: our kernels do, ONNX Runtime sums by the number of rows."""
    return manifest.target.kind != "onnxruntime"


def held_tokens(manifest: Manifest) -> int:
    """Tokens a sequence may have before anything of it is evicted."""
    pruning = manifest.kv.pruning
    return manifest.max_seq_len if pruning is None else min(manifest.max_seq_len, pruning.room)


@dataclass(frozen=True)
class Disagreement:
    """A token that is not eager's.

    ``position`` counts generated tokens from 0; ``margin`` is how much more eager's logits give to ``expected``
    than to ``token``, ``top2_margin`` by how much they prefer ``expected`` to any other.
    """

    position: int
    token: int
    expected: int
    margin: float
    top2_margin: float

    @property
    def is_tie(self) -> bool:
        """Whether rounding alone explains it."""
        return self.margin <= TIE_MARGIN

    def __str__(self) -> str:
        return (
            f"token {self.position} is {self.token}, eager's is {self.expected} "
            f"(margin {self.margin:.2g}, top-2 margin {self.top2_margin:.2g})"
        )


def disagreements(tokens: Sequence[int], logits: Iterable[NDArray[np.float32]]) -> list[Disagreement]:
    """Where ``tokens`` are not the likeliest by ``logits``, given in chunks [n, V] with one row for each token."""
    found = []
    position = 0
    for chunk in logits:
        for row in chunk:
            expected = int(row.argmax())
            if (token := tokens[position]) != expected:
                second, first = np.partition(row, -2)[-2:]
                margin = float(row[expected] - row[token])
                found.append(Disagreement(position, token, expected, margin, float(first - second)))
            position += 1
    assert position == len(tokens), "one row of logits a token"
    return found
