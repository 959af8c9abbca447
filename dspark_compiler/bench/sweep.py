"""Quality against memory: the tasks at several cache budgets, policy by policy, beside the unpruned artifact."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark_compiler.artifact import Artifact, nbytes
from dspark_compiler.bench.report import device_of, installed_versions
from dspark_compiler.bench.tasks import TASKS
from dspark_compiler.errors import InputError

# Makes the artifact with a policy and so many slots; it is gone when the context ends.
CompileVariant = Callable[[str, int], AbstractContextManager[Artifact]]
# Results of each task on an artifact.
Evaluate = Callable[[Artifact], dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class SweepPlan:
    """What is compared: each policy at each budget, a fraction of the tokens a sequence can have.

    Raises:
        InputError: a fraction that is none, or one given twice.
    """

    fractions: tuple[float, ...]
    policies: tuple[str, ...]

    def __post_init__(self) -> None:
        for option, values in (("--sweep-budgets", self.fractions), ("--sweep-policies", self.policies)):
            if not values or len(set(values)) < len(values):
                raise InputError(f"{option} {','.join(map(str, values))}: must name something, each once")
        for fraction in self.fractions:
            if not 0 < fraction < 1:
                raise InputError(f"--sweep-budgets {fraction:g}: each must lie between 0 and 1, as in 0.5,0.25")

    def variants(self, max_seq_len: int) -> list[tuple[str, float, int]]:
        """Policy, fraction and slots of each variant, in the order they are measured."""
        return [
            (policy, fraction, max(1, round(fraction * max_seq_len)))
            for policy in self.policies
            for fraction in sorted(self.fractions, reverse=True)
        ]


def sweep(
    artifact: Artifact,
    plan: SweepPlan,
    compile_variant: CompileVariant,
    evaluate: Evaluate,
    *,
    options: Mapping[str, Any],
    json_file: Path | None = None,
) -> dict[str, Any]:
    """Evaluates the artifact and all its variants, one after another.

    ``json_file`` is written anew after each. If it holds rows of the same sweep, they are not measured again:
    ``options`` (JSON data: whatever decides results), artifact, machine and versions must be the same.
    A budget too small for a policy is a row with an ``error`` in place of results.

    Returns:
        The JSON document: ``rows`` have policy (None: unpruned), budget_fraction, budget (slots of a layer),
        cache_bytes (all the memory an artifact keeps for its states), results by task, and relative: each task's
        metric over that of the unpruned artifact.
    """
    document = _document(artifact, options)
    rows: list[dict[str, Any]] = document["rows"]
    done = {(row["policy"], row["budget"]): row for row in _finished(json_file, document)}
    slots = artifact.manifest.kv.slots
    rows.append(done.get((None, slots)) or _row(None, 1.0, slots, artifact, evaluate(artifact)))
    unpruned = rows[0]
    _save(document, json_file)
    for policy, fraction, budget in plan.variants(artifact.manifest.max_seq_len):
        row = done.get((policy, budget)) or _measured(policy, fraction, budget, compile_variant, evaluate)
        row["relative"] = _relative(row["results"], unpruned["results"])
        rows.append(row)
        _save(document, json_file)
    return document


def _measured(
    policy: str, fraction: float, budget: int, compile_variant: CompileVariant, evaluate: Evaluate
) -> dict[str, Any]:
    try:
        with compile_variant(policy, budget) as variant:
            return _row(policy, fraction, budget, variant, evaluate(variant))
    except InputError as error:
        # Hours of other measurements should not be lost to one budget that is too small.
        empty = {"policy": policy, "budget_fraction": fraction, "budget": budget, "cache_bytes": None}
        return {**empty, "results": {}, "error": str(error)}


def _row(
    policy: str | None, fraction: float, budget: int, artifact: Artifact, results: dict[str, Any]
) -> dict[str, Any]:
    states = artifact.manifest.states.values()
    return {
        "policy": policy,
        "budget_fraction": fraction,
        "budget": budget,
        "cache_bytes": sum(nbytes(state) for state in states),
        "results": results,
    }


def _relative(results: Mapping[str, Any], unpruned: Mapping[str, Any]) -> dict[str, float | None]:
    """Each task's metric over the unpruned artifact's; None where that is 0."""
    found: dict[str, float | None] = {}
    for task, result in results.items():
        metric = TASKS[task].metric
        base = unpruned[task][metric]
        found[task] = result[metric] / base if base else None
    return found


def _document(artifact: Artifact, options: Mapping[str, Any]) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "model": manifest.model.name,
        "target": manifest.target.kind,
        "dtype": manifest.dtype,
        "max_seq_len": manifest.max_seq_len,
        "artifact_sha256": hashlib.sha256(manifest.dumps().encode()).hexdigest(),
        "device": device_of(artifact),
        "versions": installed_versions(),
        "command": " ".join(["dspark", *sys.argv[1:]]),
        "options": dict(options),
        "rows": [],
    }


def _finished(json_file: Path | None, document: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Rows of an earlier run of the same sweep."""
    if json_file is None or not json_file.is_file():
        return []
    try:
        earlier = json.loads(json_file.read_text(encoding="utf-8"))
    except ValueError:
        return []
    if not isinstance(earlier, dict):
        return []
    same = all(earlier.get(name) == value for name, value in document.items() if name not in ("command", "rows"))
    rows: list[dict[str, Any]] = earlier["rows"] if same else []
    return [row for row in rows if "error" not in row]


def _save(document: Mapping[str, Any], path: Path | None) -> None:
    if path is None:
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
