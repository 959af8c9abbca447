"""The search for the smallest cache that holds, over measurements made up."""

import pytest

from dspark_compiler.compare.gate import Gate, Trial, candidate_budgets
from dspark_compiler.compare.quality import QualityReport
from dspark_compiler.errors import CheckFailedError, InputError

# Perplexities by policy and budget; the unpruned one is 10.
_MEASURED = {"a": {512: 10.05, 256: 10.09, 128: 11.0}, "b": {512: 10.0, 256: 10.2, 128: 10.2}, "c": {128: 10.05}}


def _report(perplexity: float) -> QualityReport:
    return QualityReport(1024, perplexity, None, 0, 1.0, 1.0, ())


def _measure(policy: str, budget: int) -> QualityReport:
    if budget not in _MEASURED[policy]:
        raise InputError(f"--kv-budget {budget}: too small")
    return _report(_MEASURED[policy][budget])


def _gate(limit: float) -> Gate:
    return Gate(limit, _report(10.0), _measure)


def _tried(gate: Gate) -> list[tuple[str, int]]:
    return [(trial.policy, trial.budget) for trial in gate.trials]


def test_the_smallest_budget_that_holds_is_chosen() -> None:
    gate = _gate(0.01)
    chosen = gate.choose(["a"], [128, 512, 256])
    assert (chosen.policy, chosen.budget) == ("a", 256)
    assert chosen.loss == pytest.approx(0.009)
    assert _tried(gate) == [("a", 512), ("a", 256), ("a", 128)]


def test_other_policies_are_tried_at_smaller_budgets_only() -> None:
    gate = _gate(0.01)
    assert gate.choose(["a", "c"], [512, 256, 128]).policy == "c"
    assert _tried(gate)[3:] == [("c", 128)]
    # The better loss at the same size does not matter, the order asked for does.
    assert _gate(0.03).choose(["b", "a"], [512, 256]).policy == "b"


def test_where_nothing_holds_the_closest_is_named() -> None:
    with pytest.raises(
        CheckFailedError, match=r"0\.001: no policy holds it; a comes closest and loses 0\.005 with 512"
    ):
        _gate(0.001).choose(["a"], [512, 256])


def test_where_nothing_can_be_compiled_it_says_why() -> None:
    with pytest.raises(CheckFailedError, match="nothing could be tried: --kv-budget 512: too small"):
        _gate(0.01).choose(["c"], [512, 256])


def test_the_report_says_what_was_chosen_and_why() -> None:
    gate = _gate(0.01)
    found = gate.to_json(gate.choose(["a"], [512, 256, 128]))
    assert found["chosen"]["budget"] == 256
    assert "loses 0.009 of at most 0.01 on documents of 1024 tokens" in found["why"]
    assert [trial["budget"] for trial in found["trials"]] == [512, 256, 128]
    assert Trial("a", 1, error="no").to_json()["error"] == "no"


def test_budgets_are_halves_of_halves() -> None:
    assert candidate_budgets(4096) == (2048, 1024, 512, 256, 128)
    assert candidate_budgets(5) == (2, 1)
