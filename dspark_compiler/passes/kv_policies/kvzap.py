"""A small network tells, from a token's hidden state, how much it will matter. Devoto et al. 2026 (arXiv 2601.07891).

It was trained to predict the logarithm of KVzip's importance (models/surrogate.py, training/); a token is scored once,
when it comes, and its score lies beside its key.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

from torch import Tensor

from dspark_compiler.errors import InputError
from dspark_compiler.models.surrogate import Surrogate, read_surrogate
from dspark_compiler.passes.kv_policies.base import Policy, SlotView


@dataclass(frozen=True)
class KVzap(Policy):
    """The trained network's prediction, made when the token came.

    Attributes:
        weights: the file.
        surrogate: what it holds.
    """

    name: ClassVar[str] = "kvzap"
    keeps: ClassVar[Literal["nothing", "sums", "tokens"]] = "tokens"
    weights: Path
    surrogate: Surrogate = field(compare=False, repr=False)

    @classmethod
    def load(cls, weights: Path | None) -> Self:
        """The policy with the weights of a file.

        Raises:
            InputError: no file is given, or one that holds no such weights.
        """
        if weights is None:
            raise InputError(
                f"--kv-policy {cls.name}: needs trained weights, --kv-weights FILE; dspark kvzap train makes them"
            )
        return cls(weights, read_surrogate(weights))

    def score(self, view: SlotView) -> Tensor:
        """See Policy.score."""
        return view.slot_scores()

    def token_maps(self, layer: int, hidden: int, heads: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """See Policy.token_maps."""
        self.surrogate.check_fits(str(self.weights), hidden, max(layer + 1, len(self.surrogate.layers)), heads)
        return tuple((affine.weight, affine.bias) for affine in self.surrogate.layers[layer])
