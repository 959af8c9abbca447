"""``--max-quality-loss``: the smallest cache whose quality holds, out of the policies asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dspark_compiler.compare.quality import QualityReport, quality_loss
from dspark_compiler.errors import CheckFailedError, InputError

# Budgets that are tried: halves of the document, then halves of those.
_SMALLEST_SHARE = 32


@dataclass(frozen=True)
class Trial:
    """A policy at a budget (slots of a layer): what the suite measured, and the loss; or why it cannot be compiled."""

    policy: str
    budget: int
    loss: float | None = None
    quality: QualityReport | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        quality = None if self.quality is None else self.quality.to_json()
        return {
            "policy": self.policy,
            "budget": self.budget,
            "loss": self.loss,
            "quality": quality,
            "error": self.error,
        }


@dataclass
class Gate:
    """Looks for the smallest budget at which the loss is at most ``limit``.

    Attributes:
        limit: the largest relative loss allowed, see ``quality_loss``.
        unpruned: what the suite measured with a slot for every token.
        measure: compiles a policy at a budget and runs the suite; raises InputError where it cannot be compiled.
        trials: what was tried, in order.
    """

    limit: float
    unpruned: QualityReport
    measure: Callable[[str, int], QualityReport]
    trials: list[Trial] = field(default_factory=list)

    def choose(self, policies: Sequence[str], budgets: Sequence[int]) -> Trial:
        """The trial that holds with the fewest slots; of equal ones the policy named first.

        Each policy is tried at falling budgets until one does not hold; larger ones than another policy made do with
        are not tried.

        Raises:
            CheckFailedError: none holds; names the one that came closest.
        """
        best: Trial | None = None
        for policy in policies:
            for budget in sorted(budgets, reverse=True):
                if best is not None and budget >= best.budget:
                    continue
                trial = self._try(policy, budget)
                if trial.loss is None or trial.loss > self.limit:
                    break
                best = trial
        if best is None:
            raise CheckFailedError(self._failure())
        return best

    def _try(self, policy: str, budget: int) -> Trial:
        try:
            quality = self.measure(policy, budget)
            trial = Trial(policy, budget, quality_loss(self.unpruned, quality), quality)
        except InputError as error:
            trial = Trial(policy, budget, error=str(error))
        self.trials.append(trial)
        return trial

    def _failure(self) -> str:
        measured = [trial for trial in self.trials if trial.loss is not None]
        if not measured:
            return f"--max-quality-loss {self.limit:g}: nothing could be tried: {self.trials[0].error}"
        closest = min(measured, key=lambda trial: trial.loss or 0.0)
        return (
            f"--max-quality-loss {self.limit:g}: no policy holds it; {closest.policy} comes closest and loses "
            f"{closest.loss:.3g} with {closest.budget} slots for {self.unpruned.length} tokens; "
            "allow more, try other policies, or leave the cache whole"
        )

    def to_json(self, chosen: Trial) -> dict[str, Any]:
        """For report.json: what was chosen, why, and what else was tried."""
        return {
            "limit": self.limit,
            "chosen": {"policy": chosen.policy, "budget": chosen.budget, "loss": chosen.loss},
            "why": (
                f"{chosen.policy} with {chosen.budget} slots loses {chosen.loss:.3g} of at most {self.limit:g} on "
                f"documents of {self.unpruned.length} tokens; nothing smaller that was tried holds"
            ),
            "unpruned": self.unpruned.to_json(),
            "trials": [trial.to_json() for trial in self.trials],
        }


def candidate_budgets(length: int) -> tuple[int, ...]:
    """Slots to be tried on documents of ``length`` tokens: a half, a quarter, and so on."""
    budgets = []
    share = 2
    while share <= _SMALLEST_SHARE and length // share > 0:
        budgets.append(length // share)
        share *= 2
    return tuple(budgets)
