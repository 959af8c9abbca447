"""Sweeps over cache budgets: with made-up variants, and with compiled ones."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dspark_compiler.artifact import Artifact, nbytes
from dspark_compiler.bench.sweep import SweepPlan, sweep
from dspark_compiler.bench.sweep_plot import plot_sweep
from dspark_compiler.bench.sweep_table import sweep_table
from dspark_compiler.cli import main
from dspark_compiler.compare.origin import recorded_config
from dspark_compiler.errors import InputError
from tests.bench.tiny import CONTEXT
from tests.runtime import toy

OPTIONS = {"tasks": ["ppl", "lambada"], "limit": None}


class Workshop:
    """Variants of the toy, and what is done with them."""

    def __init__(self, artifact: Path) -> None:
        self.artifact = Artifact.open(artifact)
        self.compiled: list[tuple[str, int]] = []
        self.alive = 0
        self.fails = False

    @contextmanager
    def compile(self, policy: str, budget: int) -> Iterator[Artifact]:
        if budget < 10:
            raise InputError(f"--kv-budget {budget}: too small")
        if self.fails:
            raise OSError("the disk is full")
        self.compiled.append((policy, budget))
        self.alive += 1
        manifest = self.artifact.manifest
        states = {name: replace(state, shape=(budget, *state.shape[1:])) for name, state in manifest.states.items()}
        yield replace(self.artifact, manifest=replace(manifest, states=states))
        self.alive -= 1

    def evaluate(self, artifact: Artifact) -> dict[str, dict[str, Any]]:
        slots = next(iter(artifact.manifest.states.values())).shape[0]
        return {"ppl": {"perplexity": 10 + slots}, "lambada": {"accuracy": 0.0 if slots == toy.BATCH else 0.5}}

    def sweep(self, plan: SweepPlan, file: Path | None = None, options: dict[str, Any] = OPTIONS) -> dict[str, Any]:
        return sweep(self.artifact, plan, self.compile, self.evaluate, options=options, json_file=file)


@pytest.fixture
def workshop(toy_artifact: Path) -> Workshop:
    return Workshop(toy_artifact)


PLAN = SweepPlan((0.25, 0.5), ("window", "h2o"))


def test_rows_are_measured_one_by_one(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    document = workshop.sweep(PLAN, file)
    unpruned, *rows = document["rows"]
    assert (unpruned["policy"], unpruned["budget_fraction"], unpruned["budget"]) == (None, 1.0, toy.SLOTS)
    assert unpruned["cache_bytes"] == sum(nbytes(state) for state in workshop.artifact.manifest.states.values())
    keys = [(row["policy"], row["budget_fraction"], row["budget"]) for row in rows]
    assert keys == [("window", 0.5, 24), ("window", 0.25, 12), ("h2o", 0.5, 24), ("h2o", 0.25, 12)]
    assert rows[0]["cache_bytes"] == 2 * rows[1]["cache_bytes"]
    assert rows[1]["relative"] == {"ppl": 22 / 13, "lambada": None}
    assert workshop.alive == 0
    assert json.loads(file.read_text()) == document
    assert document["options"] == OPTIONS
    assert {"model", "device", "versions", "command", "artifact_sha256"} < document.keys()


def test_an_interrupted_sweep_goes_on(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    workshop.sweep(SweepPlan((0.5,), ("window",)), file)
    workshop.fails = True
    with pytest.raises(OSError, match="disk is full"):
        workshop.sweep(PLAN, file)
    assert len(json.loads(file.read_text())["rows"]) == 2
    workshop.fails = False
    workshop.compiled.clear()
    assert len(workshop.sweep(PLAN, file)["rows"]) == 5
    assert workshop.compiled == [("window", 12), ("h2o", 24), ("h2o", 12)]
    workshop.compiled.clear()
    workshop.sweep(PLAN, file, OPTIONS | {"limit": 3})
    assert len(workshop.compiled) == 4  # another sweep
    file.write_text("{")
    assert len(workshop.sweep(PLAN, file)["rows"]) == 5


def test_a_budget_that_is_too_small_ends_nothing(workshop: Workshop, tmp_path: Path) -> None:
    document = workshop.sweep(SweepPlan((0.1, 0.5), ("window",)))
    good, bad = document["rows"][1:]
    assert good["results"]
    assert (bad["error"], bad["results"], bad["cache_bytes"]) == ("--kv-budget 5: too small", {}, None)
    plot_sweep(document, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    columns = [list(column.cells) for column in sweep_table(document).columns]
    assert columns[0] == ["unpruned", "window", "window"]
    assert columns[3] == ["13", "34 (+161.5%)", "--kv-budget 5: too small"]
    assert columns[4][:2] == ["0", "0.5 (+50.0 pts)"]


@pytest.mark.parametrize(
    ("fractions", "policies", "message"),
    [
        ((0.5, 0.5), ("window",), "--sweep-budgets 0.5,0.5: must name something, each once"),
        ((0.5,), ("h2o", "h2o"), "--sweep-policies h2o,h2o"),
        ((1.0,), ("window",), "--sweep-budgets 1: each must lie between 0 and 1"),
        ((0.5, -0.1), ("window",), "--sweep-budgets -0.1"),
    ],
)
def test_plans_that_are_none(fractions: tuple[float, ...], policies: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SweepPlan(fractions, policies)


def dspark(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_a_sweep_of_compiled_variants(tiny_artifact: Artifact, tmp_path: Path) -> None:
    file, picture = tmp_path / "sweep.json", tmp_path / "sweep.png"
    arguments = ("--task", "ppl", "--task", "agreement", "--limit", 2, "--json", file, "--plot", picture)
    variants = ("--sweep-budgets", "0.5,0.01", "--sweep-policies", "window,knorm")
    result = dspark("eval", tiny_artifact.path, *arguments, *variants)
    assert result.exit_code == 0, result.output
    unpruned, *rows = json.loads(file.read_text())["rows"]
    assert [(row["policy"], row["budget"]) for row in rows] == [
        *(("window", CONTEXT // 2), ("window", 1), ("knorm", CONTEXT // 2), ("knorm", 1))
    ]
    assert unpruned["results"]["agreement"]["agreement"] == 1
    for row in rows[::2]:
        assert row["cache_bytes"] < 0.75 * unpruned["cache_bytes"]
        assert row["results"]["ppl"]["perplexity"] != unpruned["results"]["ppl"]["perplexity"]
        assert "eager_perplexity" not in row["results"]["ppl"]
        assert row["results"]["agreement"]["agreement"] < 1
    assert all("give at least" in row["error"] for row in rows[1::2])
    assert picture.stat().st_size > 1000


def test_what_a_sweep_refuses(tiny_artifact: Artifact, toy_artifact: Path) -> None:
    def refused(message: str, *args: object) -> None:
        result = dspark("eval", *args, "--task", "ppl")
        assert result.exit_code == 2, result.output
        assert message in result.stderr.strip().splitlines()[-1]

    refused("'half' is not a list of fractions", tiny_artifact.path, "--sweep-budgets", "half")
    refused("'joy' is not one of", tiny_artifact.path, "--sweep-budgets", "0.5", "--sweep-policies", "joy")
    refused("give it with --model", toy_artifact, "--sweep-budgets", "0.5")
    refused("does not say with which options", toy_artifact, "--sweep-budgets", "0.5", "--model", "m")


def test_the_recorded_options_are_those_of_the_compile(tiny_artifact: Artifact) -> None:
    config = recorded_config(tiny_artifact)
    assert (config.max_seq_len, config.prefill_widths, config.verify_width) == (CONTEXT, (16,), 4)
    assert config.output == tiny_artifact.path
