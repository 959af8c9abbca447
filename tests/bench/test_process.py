"""Contestants' processes: what they answer, and how their failures come across."""

import dataclasses
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from dspark_compiler.bench import worker
from dspark_compiler.bench.contestants import CONTESTANTS, Setup
from dspark_compiler.bench.memory import Memory
from dspark_compiler.bench.process import ContestantProcess
from dspark_compiler.errors import ArtifactError, DSparkError, InputError
from tests.runtime import toy


def setup(artifact: Path, model: str | None = None, dtype: str = "float32") -> Setup:
    return Setup(str(artifact), model, dtype, threads=1, prompt_len=5, new_tokens=6)


def test_the_artifact_decodes_greedily_past_its_end(toy_artifact: Path) -> None:
    with ContestantProcess("compiled", setup(toy_artifact)) as process:
        for prompt in ([1, 2, 3, 4, 5], [9, 8, 7]):
            answer = process.generate(prompt, 6, warm_up=prompt[0] == 1)
            assert answer.tokens == toy.Reference().greedy(prompt, 6, eos=None)
            assert answer.times_ms == sorted(answer.times_ms)
            assert len(answer.times_ms) == 6
            assert answer.times_ms[0] > 0
        assert 1 << 24 < process.peak_memory_bytes() < 1 << 30
        assert process.options["tvm"] == "0.27.0.post1"


def test_errors_keep_their_class_and_line(tmp_path: Path, toy_artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="no such artifact"):
        ContestantProcess("compiled", setup(tmp_path / "none.dspark"))
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        ContestantProcess("eager", setup(toy_artifact, model="nowhere"))
    with pytest.raises(InputError, match="onnxruntime: its cpu kernels compute in float32"):
        ContestantProcess("onnxruntime", setup(toy_artifact, "model", "bfloat16"))
    with pytest.raises(InputError, match=r"onnxruntime: version .* here has no kernels for vulkan \(no provider\)"):
        ContestantProcess("onnxruntime", dataclasses.replace(setup(toy_artifact, "model"), device="vulkan"))


def test_a_process_that_dies_is_reported_with_its_last_words(toy_artifact: Path) -> None:
    with ContestantProcess("compiled", setup(toy_artifact)) as process:
        # No vocabulary has this id, which nobody checks this deep: numpy cannot hold it.
        with pytest.raises(DSparkError, match=r"^compiled: its process ended: .*Overflow.* \(exit code 1\)$"):
            process.generate([1 << 70], 2)
        with pytest.raises(DSparkError, match="compiled: its process ended"):
            process.generate([1], 2)


class Slow:
    """A contestant whose clock is known."""

    options = {"kind": "fake"}  # noqa: RUF012
    memory = Memory(lambda: 5, lambda: None)

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def generate(self, prompt: list[int], new_tokens: int) -> Iterator[list[int]]:
        yield prompt
        yield [prompt[0] + place for place in range(1, new_tokens)]


def test_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTESTANTS, "slow", Slow)
    clock = iter([100.0, 100.5, 100.75])
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(clock))
    first = {"contestant": "slow", "artifact": "a", "model": None, "dtype": "float32"}
    first |= {"threads": 1, "prompt_len": 1, "new_tokens": 3}
    second = {"do": "generate", "prompt": [7], "new_tokens": 3, "settled": False}
    answers = StringIO()
    worker.serve(StringIO(json.dumps(first) + "\n" + json.dumps(second) + "\n"), answers)
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"options": {"kind": "fake"}},
        {"tokens": [7, 8, 9], "times_ms": [500.0, 625.0, 750.0], "steps": 2},
    ]
