"""A sweep from the options of the command line."""

from pathlib import Path
from typing import Any

from dspark_compiler.artifact import Artifact
from dspark_compiler.bench.evaluate import EvalConfig, evaluate
from dspark_compiler.bench.sweep import SweepPlan, sweep
from dspark_compiler.bench.tasks.base import Progress
from dspark_compiler.bench.tasks.reference import Reference
from dspark_compiler.bench.variants import Variants
from dspark_compiler.errors import InputError
from dspark_compiler.passes.kv_policies import POLICIES, choose_policy


def run_sweep(
    config: EvalConfig,
    fractions: tuple[float, ...],
    policies: tuple[str, ...],
    weights: Path | None,
    json_file: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluates the config's artifact and its variants; without ``policies``, all that need no more than ``weights``.

    Tokens are compared with the artifact's own, unless the config names another to compare with.

    Raises:
        InputError: an option that cannot be used, among them a policy that is none.
    """
    plan = SweepPlan(fractions, policies or _usable(weights))
    for policy in plan.policies:
        choose_policy(policy, weights)
    artifact = config.opened
    variants = Variants(artifact, config.model, weights, progress)
    reference = config.reference or Reference(artifact, config.threads)

    def run(variant: Artifact) -> dict[str, dict[str, Any]]:
        return evaluate(config, variant, progress, reference=reference, beside_eager=False)

    options = {
        "tasks": list(config.tasks),
        "data": list(config.data),
        "limit": list(config.limits),
        "length": config.length,
        "weights": None if weights is None else str(weights),
        "against": None if config.against is None else str(config.against),
    }
    return sweep(artifact, plan, variants.compiled, run, options=options, json_file=json_file)


def _usable(weights: Path | None) -> tuple[str, ...]:
    found = []
    for name in POLICIES:
        try:
            choose_policy(name, weights)
        except InputError:
            if weights is not None:
                raise
            continue  # asks for weights
        found.append(name)
    return tuple(found)
