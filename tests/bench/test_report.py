"""From times to figures, and when no speed-up may be reported."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dspark_compiler.artifact import Artifact, HeadsInfo
from dspark_compiler.bench import verdict
from dspark_compiler.bench.harness import Contender, Measurements
from dspark_compiler.bench.plot import plot
from dspark_compiler.bench.process import Generation
from dspark_compiler.bench.report import report, tables
from dspark_compiler.bench.roofline import token_traffic
from dspark_compiler.bench.verdict import partings
from dspark_compiler.errors import CheckFailedError
from tests.runtime import toy

# The keys the command line's contract names.
KEYS = {
    "model",
    "target",
    "dtype",
    "device",
    "versions",
    "prompt_len",
    "new_tokens",
    "runs",
    "speedup",
    "tokens_identical",
}
RUN_KEYS = {
    *("name", "ttft_ms", "tpot_ms", "tokens_per_s", "accepted_length", "peak_memory_bytes", "roofline_fraction"),
}


def contender(name: str, step_ms: float, tokens: list[list[int]]) -> Contender:
    """First token after 10 steps, then one a step; the second prompt's last step takes three."""
    generations = []
    for index, answer in enumerate(tokens):
        times = step_ms * (10 + np.arange(len(answer), dtype=float))
        times[-1] += 2 * step_ms * index
        generations.append(Generation(answer, times.tolist(), len(answer)))
    return Contender(name, {"a": "b"}, 1.5, generations, [1e9] * len(tokens), 1000)


def measurements(artifact: Artifact, *contenders: Contender) -> Measurements:
    return Measurements(artifact, "model", 2, [[1, 2, 3], [4, 5, 6]], list(contenders), 1e9, 0.0)


TOKENS = [[5, 6, 7, 8], [9, 10, 11, 12]]


@pytest.fixture
def artifact(toy_artifact: Path) -> Artifact:
    return Artifact.open(toy_artifact)


def test_figures(artifact: Artifact) -> None:
    measured = measurements(artifact, contender("compiled", 2, TOKENS), contender("eager", 6, TOKENS))
    result = report(measured, partings(measured))
    assert result.keys() >= KEYS
    compiled, eager = result["runs"]
    assert compiled.keys() >= RUN_KEYS
    assert (result["prompt_len"], result["new_tokens"]) == (3, 4)
    assert compiled["ttft_ms"] == {"p50": 20, "p90": 20}
    assert compiled["tpot_ms"]["p50"] == 2  # five of the six steps
    assert compiled["tpot_ms"]["p90"] > 2
    assert compiled["tokens_per_s"] == pytest.approx(6 * 1e3 / (5 * 2 + 6))
    assert (compiled["peak_memory_bytes"], compiled["accepted_length"]) == (1000, None)
    needed = token_traffic(artifact.manifest).bytes_at(3 + 4 / 2)
    assert compiled["roofline_fraction"] == pytest.approx(needed / 1e9 / 2e-3)
    assert result["speedup"] == {"eager": pytest.approx(3)}
    assert result["tokens_identical"] is True
    assert eager["name"] == "eager"


def test_each_prompt_is_judged_by_the_bandwidth_of_its_moment(artifact: Artifact) -> None:
    fast = contender("compiled", 2, [*TOKENS, TOKENS[0]])
    fast.bandwidths = [1e9, 4e9, 2e9]
    needed = token_traffic(artifact.manifest).bytes_at(3 + 4 / 2)
    result = report(measurements(artifact, fast), [])
    assert result["runs"][0]["roofline_fraction"] == pytest.approx(needed / 2e9 / 2e-3)


def test_alone_there_is_nothing_to_compare(artifact: Artifact) -> None:
    measured = measurements(artifact, contender("compiled", 2, TOKENS))
    result = report(measured, partings(measured))
    assert (result["speedup"], result["tokens_identical"]) == ({}, None)


def test_the_table_shows_each_run(artifact: Artifact) -> None:
    measured = measurements(artifact, contender("compiled", 2, TOKENS), contender("eager", 6, TOKENS))
    console = Console(width=100, record=True, file=io.StringIO())
    for table in tables(report(measured, [])):
        console.print(table)
    text = console.export_text()
    assert "3.00x" in text
    assert "20.0 / 20.0" in text
    assert "1.0 GB/s" in text


def eager_says(monkeypatch: pytest.MonkeyPatch, logits: list[float]) -> None:
    """Eager's logits, whatever it is asked."""

    row = np.zeros((1, toy.V), np.float32)
    row[0, : len(logits)] = logits

    class Eager:
        def load_for_compile(self) -> None:
            return None

        def logits(self, tokens: list[int], first: int) -> Iterator[np.ndarray]:
            assert first == len(tokens) - 1
            yield row

    monkeypatch.setattr("dspark_compiler.frontend.source.open_source", lambda model: Eager())
    monkeypatch.setattr("dspark_compiler.compare.reference.reference_of", lambda model: Eager())


DIFFERENT = [[5, 6, 7, 8], [9, 2, 11, 12]]
EXPECTED = [[5, 6, 7, 8], [9, 1, 3, 4]]


def test_no_speed_up_when_tokens_differ(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    eager_says(monkeypatch, [0, 5, 4.5])
    measured = measurements(artifact, contender("compiled", 2, DIFFERENT), contender("eager", 6, EXPECTED))
    with pytest.raises(CheckFailedError) as caught:
        partings(measured)
    message = str(caught.value)
    assert "compiled, prompt 1: token 1 is 2, eager's is 1 (margin 0.5, top-2 margin 0.5)" in message
    assert "\n" not in message


def test_a_tie_is_told_and_no_failure(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    eager_says(monkeypatch, [0, 5, 4.9999])
    measured = measurements(artifact, contender("compiled", 2, DIFFERENT), contender("eager", 6, EXPECTED))
    found = partings(measured)
    assert "a tie within rounding" in str(found[0])
    result = report(measured, found)
    assert result["tokens_identical"] is False
    assert result["speedup"] == {"eager": pytest.approx(3)}


def test_without_eager_either_side_can_be_wrong(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    eager_says(monkeypatch, [0, 0, 5])
    measured = measurements(artifact, contender("compiled", 2, DIFFERENT), contender("onnxruntime", 6, EXPECTED))
    with pytest.raises(CheckFailedError, match="onnxruntime, prompt 1: token 1 is 1, eager's is 2"):
        partings(measured)


def test_rounded_weights_promise_nothing(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "_judge", None)  # would fail if called
    rounded = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, dtype="bfloat16"))
    measured = measurements(rounded, contender("compiled", 2, DIFFERENT), contender("eager", 6, EXPECTED))
    (found,) = partings(measured)
    assert str(found) == "compiled, prompt 1: tokens differ from token 1 on"
    assert report(measured, [found])["tokens_identical"] is False


def test_plot(artifact: Artifact, tmp_path: Path) -> None:
    measured = measurements(artifact, contender("compiled", 2, TOKENS), contender("eager", 6, TOKENS))
    plot(measured, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


HEADS = HeadsInfo("ngram", "lookup", 7)


def test_heads_are_judged_prompt_by_prompt(artifact: Artifact) -> None:
    drafting = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, heads=HEADS))
    fast = contender("compiled", 2, TOKENS)
    fast.generations = [dataclasses.replace(made, steps=3) for made in fast.generations]
    fast.generations[1].times_ms[-1] += 4  # 14 ms against 30 for the same three tokens
    measured = measurements(drafting, fast, contender("no-heads", 6, TOKENS))
    result = report(measured, partings(measured))
    compiled, plain = result["runs"]
    assert (compiled["accepted_length"], compiled["roofline_fraction"]) == (3 / 2, None)
    assert plain["accepted_length"] is None
    assert plain["roofline_fraction"] > 0
    assert result["speedup"] == {"no-heads": pytest.approx((3 + 30 / 14) / 2)}
    console = Console(width=100, record=True, file=io.StringIO())
    for table in tables(result):
        console.print(table)
    assert "1.50" in console.export_text()


def test_heads_never_change_tokens(artifact: Artifact) -> None:
    rounded = dataclasses.replace(artifact.manifest, heads=HEADS, dtype="bfloat16")
    drafting = dataclasses.replace(artifact, manifest=rounded)
    measured = measurements(drafting, contender("compiled", 2, DIFFERENT), contender("no-heads", 6, TOKENS))
    with pytest.raises(CheckFailedError, match="heads change the tokens: prompt 1, from token 1 on"):
        partings(measured)
