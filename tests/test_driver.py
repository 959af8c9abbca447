"""The flow from a checkpoint to an artifact, and what it refuses."""

import dataclasses
import json
from pathlib import Path

import pytest
from tvm_ffi import from_dlpack

from dspark_compiler import CompileConfig, compile, driver, load
from dspark_compiler.artifact import Artifact, aligned_zeros
from dspark_compiler.backends.cpu import CpuBackend
from dspark_compiler.backends.rocm import tools
from dspark_compiler.errors import BackendUnavailableError, CheckFailedError, InputError
from dspark_compiler.runtime.library import load_functions
from tests.tiny_models import TINY

_SMALL = {"max_seq_len": 48, "prefill_widths": (8,), "verify_width": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("driver") / "tiny-llama"
    TINY["llama-tied"]().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def compiled(source: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("compiled")
    return compile(source, output=folder / "m.dspark", dump_ir=folder / "ir", **_SMALL)


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_report_says_what_was_done(compiled: Artifact, source: str) -> None:
    report = json.loads((compiled.path / "report.json").read_text())
    assert report["source"] == source
    assert report["options"]["max_seq_len"] == 48
    assert report["check"]["agreement"] == 1.0
    assert report["check"]["tokens"] > 100
    assert list(report["seconds"]) == ["load", "capture", "rewrite", "lower", "schedule", "build", "write", "check"]
    assert report["passes"][0]["name"] == "canonicalize"


def test_artifact_is_verified_and_runs(compiled: Artifact) -> None:
    engine = load(compiled.path)
    assert engine.artifact.manifest.entry_points.keys() == {"prefill_8", "decode", "verify_2", "commit"}
    assert len(engine.complete([[5, 6, 7]])[0].tokens) > 0


@pytest.mark.parametrize(("shape", "dtype"), [((7,), "int32"), ((1,), "int64"), ((1, 1), "int32")])
def test_an_entry_point_checks_what_its_kernels_trust(compiled: Artifact, shape: tuple[int, ...], dtype: str) -> None:
    entry, states = compiled.manifest.entry_points["commit"], compiled.manifest.states
    tensors = [*entry.inputs, *(states[name] for name in entry.states)]
    length, *others = (from_dlpack(aligned_zeros(tensor.shape, tensor.dtype)) for tensor in tensors)
    commit = load_functions(compiled, None)["commit"]
    commit(length, *others)
    with pytest.raises((RuntimeError, ValueError), match=r"fn=commit, .* param=length"):
        commit(from_dlpack(aligned_zeros(shape, dtype)), *others)


def test_every_pass_and_the_schedules_are_dumped(compiled: Artifact) -> None:
    names = {path.name for path in (compiled.path.parent / "ir").iterdir()}
    assert "scheduled.tir.py" in names
    report = json.loads((compiled.path / "report.json").read_text())
    for number, entry in enumerate(report["passes"], start=1):
        assert f"{number:02d}-{entry['name']}.decode.txt" in names


def test_a_failed_check_keeps_the_previous_artifact(
    compiled: Artifact, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagree(*_: object, **__: object) -> None:
        raise CheckFailedError("prompt 0: token 3 differs")

    monkeypatch.setattr(driver, "check", disagree)
    before = _tree(compiled.path)
    with pytest.raises(CheckFailedError, match="token 3"):
        compile(source, output=compiled.path, **_SMALL)
    assert _tree(compiled.path) == before
    assert [path.name for path in compiled.path.parent.iterdir() if "m.dspark" in path.name] == ["m.dspark"]


def test_a_foreign_architecture_is_not_run(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuBackend, "runs_here", lambda self: False)
    monkeypatch.setattr(driver, "check", lambda *_, **__: pytest.fail("ran"))
    artifact = compile(source, arch="x86-64-v3", output=tmp_path / "m.dspark", **_SMALL)
    assert "cannot run x86-64-v3" in json.loads((artifact.path / "report.json").read_text())["check"]
    with pytest.raises(InputError, match="tuning measures on this machine, which has nothing that runs x86-64-v3 code"):
        compile(source, arch="x86-64-v3", output=tmp_path / "m.dspark", tune_trials=4, **_SMALL)


def test_lengths_come_from_the_model(source: str) -> None:
    info = driver.open_source(source).info
    assert driver.settle(CompileConfig(), info).max_seq_len == info.max_positions
    longer = dataclasses.replace(info, max_positions=131072)
    assert driver.settle(CompileConfig(), longer).max_seq_len == 4096
    assert driver.settle(CompileConfig(max_seq_len=9000), longer).max_seq_len == 9000
    short = driver.settle(CompileConfig(max_seq_len=7), info)
    assert (short.prefill_widths, short.verify_width) == ((7,), 7)
    with pytest.raises(InputError, match="96 positions"):
        driver.settle(CompileConfig(max_seq_len=97), info)


def test_targets_that_are_not_here(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tools, "find_lld", lambda: None)
    with pytest.raises(BackendUnavailableError, match="--target rocm: needs lld"):
        compile(source, target="rocm", arch="gfx942", output=tmp_path / "m.dspark")
    assert list(tmp_path.iterdir()) == []


def test_unknown_architecture(source: str) -> None:
    with pytest.raises(InputError, match=r"--arch z80: .*x86-64-v3"):
        compile(source, arch="z80")


def test_a_folder_that_is_no_artifact_is_refused_before_any_work(source: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(InputError, match="not an artifact"):
        compile(source, output=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "do not lose me"


def test_without_a_linker(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspark_compiler.backends.cpu.shutil.which", lambda name: None)
    with pytest.raises(BackendUnavailableError, match="no C compiler"):
        compile(source, output=tmp_path / "m.dspark", **_SMALL)
    assert list(tmp_path.iterdir()) == []
