"""``dspark-compile``, ``dspark_compiler.compile`` and progress, with a driver that only notes what it is asked for."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import dspark_compiler
from dspark_compiler import cli
from dspark_compiler.artifact import Artifact
from dspark_compiler.commands.progress import Progress, make_progress
from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import BackendUnavailableError
from dspark_compiler.machine import best_target
from tests.test_artifact import write


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, CompileConfig]]:
    """What the stand-in for the driver was asked for."""
    asked: list[tuple[str, CompileConfig]] = []
    path = write(tmp_path / "m.dspark")

    def compile_model(model: str, config: CompileConfig, progress: Any = None) -> Artifact:
        asked.append((model, config))
        if progress is not None:
            progress("capture")
            progress("weights", 1, 2)
            progress("weights", 2, 2)
        return Artifact.open(path)

    driver = types.ModuleType("dspark_compiler.driver")
    driver.compile_model = compile_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dspark_compiler.driver", driver)
    return asked


def test_defaults_are_the_configs(asked: list[tuple[str, CompileConfig]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_target, "find_driver", lambda: None)
    result = CliRunner().invoke(cli.compile_main, ["some/model"])
    assert result.exit_code == 0, result.output
    assert asked == [("some/model", CompileConfig())]
    assert result.stdout.endswith("m.dspark: 0 MB\n")
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["--target cpu", "capture", "weights"]


def test_the_best_target_is_taken_and_named(
    asked: list[tuple[str, CompileConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best_target, "best_target", lambda arch: best_target.Choice("cuda", "a GPU is here"))
    result = CliRunner().invoke(cli.compile_main, ["some/model"])
    assert asked == [("some/model", CompileConfig(target="cuda"))]
    assert result.stderr.startswith("--target cuda: a GPU is here\n")


def test_every_option_reaches_its_field(asked: list[tuple[str, CompileConfig]]) -> None:
    args = (
        "m --target cpu --arch x86-64-v3 -o out --dtype bfloat16 --max-seq-len 77 --max-batch 3 --prefill-widths 4,32"
    )
    args += " --kv-budget 60 --kv-policy kvzap --kv-weights w.safetensors --heads h --quantize-heads fp8"
    args += " --max-quality-loss 0.25 --quantize int4-g128-awq --calibration text.txt"
    args += " --kv-dtype int8 --verify-width 5 --tune-trials 9 --dump-ir ir --no-check"
    assert CliRunner().invoke(cli.compile_main, args.split()).exit_code == 0
    config = CompileConfig(
        target="cpu",
        arch="x86-64-v3",
        output=Path("out"),
        dtype="bfloat16",
        kv_dtype="int8",
        kv_budget=60,
        kv_policy="kvzap",
        kv_weights=Path("w.safetensors"),
        quantize="int4-g128-awq",
        calibration=Path("text.txt"),
        heads=Path("h"),
        quantize_heads="fp8",
        max_quality_loss=0.25,
        max_seq_len=77,
        max_batch=3,
        prefill_widths=(4, 32),
        verify_width=5,
        tune_trials=9,
        dump_ir=Path("ir"),
        check=False,
    )
    assert asked == [("m", config)]
    assert {name for name, value in vars(config).items() if value == getattr(CompileConfig(), name)} == {
        "target",
        "emit",
    }


def test_what_is_emitted_reaches_its_field(asked: list[tuple[str, CompileConfig]]) -> None:
    done = CliRunner().invoke(cli.compile_main, ["m", "--target", "onnxruntime", "--emit", "onnx"])
    assert done.exit_code == 0
    assert asked == [("m", CompileConfig(target="onnxruntime", emit="onnx"))]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Missing argument 'MODEL'"),
        (["m", "--target", "abacus"], "--target abacus: not one of"),
        (["m", "--max-batch", "0"], "--max-batch 0: must be at least 1"),
        (["m", "--prefill-widths", "4,x"], "'4,x' is not a list of numbers such as 16,128"),
        (["m", "--prefill-widths", "0"], "at least one, each 1 or more"),
        (["m", "--dtype", "int3"], "'int3' is not one of"),
        (["m", "--kv-dtype", "int4"], "'int4' is not one of"),
        (["m", "--kv-budget", "0"], "--kv-budget 0: must be at least 1"),
        (
            ["m", "--kv-policy", "h2o"],
            "--kv-policy h2o: evicts nothing without --kv-budget N (or --max-quality-loss X, which",
        ),
        (["m", "--kv-weights", "w", "--kv-budget", "9"], "--kv-weights w: for which --kv-policy?"),
        (["m", "--target", "rocm", "--tune-trials", "3"], "--tune-trials 3: nothing is measured for --target rocm"),
        (["m", "--kv-anything", "3"], "No such option"),
    ],
)
def test_refused(asked: list[tuple[str, CompileConfig]], args: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.compile_main, args)
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_from_python(asked: list[tuple[str, CompileConfig]]) -> None:
    artifact = dspark_compiler.compile(Path("m"), target="cpu", output="out.dspark", max_batch=2)
    assert isinstance(artifact, dspark_compiler.Artifact)
    assert asked == [("m", CompileConfig(output=Path("out.dspark"), max_batch=2))]


def test_without_the_compile_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "dspark_compiler.driver":
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.delitem(sys.modules, "dspark_compiler.driver", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(BackendUnavailableError, match=r"package torch; pip install 'dspark-compile\[compile\]'"):
        dspark_compiler.compile("m")
    result = CliRunner().invoke(cli.compile_main, ["m"])
    assert result.exit_code == 2
    assert "needs the package torch; pip install 'dspark-compile[compile]'" in result.stderr


def test_the_public_names_are_there_and_the_import_is_light() -> None:
    for name in dspark_compiler.__all__:
        assert getattr(dspark_compiler, name) is not None
    assert set(dir(dspark_compiler)) >= set(dspark_compiler.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dspark_compiler.nothing
    program = "import sys, dspark_compiler; print({'numpy', 'torch', 'tvm_ffi', 'click'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_plain_progress_is_a_line_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress("one")
        for step in range(50):
            progress("two", step, 50)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["one", "two"]


def test_an_unfinished_stage_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with Progress() as progress:
            progress("one")
            progress("two")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["one"]


def test_details_of_a_stage_are_shown_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        for step in range(1, 40):
            progress("tune", step, 40, f"{step} of 40 trials, linear: best 3.1 us, 9 s left")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  1 of 40 trials, linear: best 3.1 us, 9 s left"
    assert len(lines) == 2


def test_terminal_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with make_progress() as progress:
        assert type(progress) is not Progress
        progress("one")
        progress("two", 1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "one" in captured.err
    assert "two" in captured.err
