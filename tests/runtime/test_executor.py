"""The executor against the toy model in numpy: slots, lengths, positions, counts, rows and chunks all matter."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark_compiler.artifact import Artifact
from dspark_compiler.errors import ArtifactError, InputError
from dspark_compiler.runtime.executor import Executor
from tests.runtime import toy


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write(tmp_path_factory.mktemp("executor") / "toy.dspark")


@pytest.fixture(scope="module")
def executor(path: Path) -> Executor:
    return Executor(Artifact.open(path))


def decode(executor: Executor, row: int, tokens: list[int]) -> np.ndarray:
    """Feeds the last of ``tokens`` to a sequence whose cache holds the others; other rows stay alone."""
    columns = np.zeros((4, executor.batch), dtype=np.int64)
    columns[:, row] = tokens[-1], len(tokens) - 1, len(tokens) - 1, 1
    return executor.decode(*columns)[row]


@given(st.lists(st.integers(0, toy.V - 1), min_size=1, max_size=toy.SLOTS), st.integers(0, toy.BATCH - 1), st.data())
@settings(max_examples=40, deadline=None)
def test_prefill_and_decode_agree_with_the_reference_however_they_are_mixed(
    executor: Executor, tokens: list[int], row: int, data: st.DataObject
) -> None:
    reference = toy.Reference()
    done = 0
    while done < len(tokens):
        upto = data.draw(st.integers(done + 1, len(tokens)))
        if upto == done + 1 and data.draw(st.booleans()):
            logits = decode(executor, row, tokens[:upto])
        else:
            logits = executor.prefill(row, tokens[done:upto], done, done)
        done = upto
        np.testing.assert_array_equal(logits, reference.logits(tokens[:done]))


def test_rows_do_not_disturb_each_other(executor: Executor) -> None:
    prompts = [[3, 4, 5], [9] * 11, [7]]
    for row, prompt in enumerate(prompts):
        executor.prefill(row, prompt, 0, 0)
    lengths = [len(prompt) for prompt in prompts]
    logits = executor.decode([1, 2, 3], lengths, lengths, [1, 0, 1])
    reference = toy.Reference()
    np.testing.assert_array_equal(logits[0], reference.logits([*prompts[0], 1]))
    np.testing.assert_array_equal(logits[2], reference.logits([*prompts[2], 3]))
    np.testing.assert_array_equal(decode(executor, 1, [*prompts[1], 8]), reference.logits([*prompts[1], 8]))


def test_verify_leaves_the_cache_alone_and_commit_appends_what_was_accepted(executor: Executor) -> None:
    reference = toy.Reference()
    prompt = [3, 4, 5, 6, 7]
    for row in range(toy.BATCH):
        executor.prefill(row, prompt, 0, 0)
    drafts = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    positions = 5 + np.tile(np.arange(3), (3, 1))
    logits = executor.verify(drafts, positions, [5, 5, 5])
    assert logits.shape == (toy.BATCH, toy.VERIFY, toy.V)
    for row in range(toy.BATCH):
        for i in range(toy.VERIFY):
            np.testing.assert_array_equal(logits[row, i], reference.logits([*prompt, *drafts[row, : i + 1]]))
    executor.commit([5, 5, 5], [0, 2, 3])
    for row, accepted in enumerate([0, 2, 3]):
        tokens = [*prompt, *drafts[row, :accepted], 11]
        np.testing.assert_array_equal(decode(executor, row, tokens), reference.logits(tokens))


def test_results_survive_the_next_call(executor: Executor) -> None:
    first = executor.prefill(0, [1, 2], 0, 0)
    copy = first.copy()
    for token in range(20):
        decode(executor, 0, [1, 2, token])
    np.testing.assert_array_equal(first, copy)


def test_verify_widths(executor: Executor) -> None:
    assert executor.verify_widths == (toy.VERIFY,)


def test_too_many_tokens_for_the_slots_are_refused(executor: Executor) -> None:
    with pytest.raises(InputError, match=r"50 tokens do not fit a sequence of at most 48"):
        executor.prefill(0, [1] * 4, 46, 46)


def test_a_library_that_is_none_is_an_artifact_error(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "toy.dspark"
    shutil.copytree(path, copy)
    (copy / "lib" / "model.so").write_bytes(b"\x7fELF" + bytes(len(toy.library()) - 4))
    with pytest.raises(ArtifactError, match=r"model\.so: cannot be loaded: .*; compile again"):
        Executor(Artifact.open(copy, verify=False))


def test_a_library_without_an_entry_point_is_an_artifact_error(tmp_path: Path) -> None:
    entries = dict(toy.manifest().entry_points)
    entries["prefill_2"] = entries["prefill_4"]
    broken = toy.write(tmp_path / "toy.dspark", entry_points=entries)
    with pytest.raises(ArtifactError, match="prefill_2"):
        Executor(Artifact.open(broken))


@pytest.mark.parametrize("threads", [0, -3])
def test_a_number_of_threads_below_one_is_refused(path: Path, threads: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Executor(Artifact.open(path), threads=threads)


def test_threads_after_the_runtime_started_are_refused_not_ignored(path: Path, executor: Executor) -> None:
    with pytest.raises(InputError, match="start a new one"):
        Executor(Artifact.open(path), threads=7)


def test_runs_without_torch_tvm_or_transformers_and_with_the_threads_asked_for(path: Path) -> None:
    program = f"""
import sys
from dspark_compiler.runtime.engine import load
engine = load({str(path)!r}, threads=1)
print(engine.complete([[1, 2, 3]])[0].tokens)
import os, tvm_ffi
assert os.environ["TVM_NUM_THREADS"] == "1"
heavy = {{"torch", "tvm", "transformers", "onnx"}} & sys.modules.keys()
assert not heavy, heavy
load({str(path)!r}, threads=1)  # the same number again is fine
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tuple(toy.Reference().greedy([1, 2, 3], toy.SLOTS - 2)))
