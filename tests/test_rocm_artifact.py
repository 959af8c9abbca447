"""An artifact for AMD's GPUs, from a checkpoint on disk to HIP's calls, which a fake libamdhip64 checks."""

import json
from pathlib import Path

import pytest

from dspark_compiler import CompileConfig
from dspark_compiler.artifact import Artifact
from dspark_compiler.backends import create_backend
from dspark_compiler.backends.rocm import tools
from dspark_compiler.driver import compile_model
from dspark_compiler.errors import BackendUnavailableError, InputError
from dspark_compiler.models.drafters.checkpoint import write_heads
from tests.passes.test_attach_decode_heads import make_heads
from tests.rocm.machine import ALL_ENTRIES, NEW_TOKENS, Machine
from tests.rocm.models import SIZES
from tests.rocm.tools import fits, kernels_in, need_rocm
from tests.tiny_models import TINY


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that drafts and evicts slots."""
    need_rocm()
    folder, model = tmp_path_factory.mktemp("rocm"), TINY["qwen3"]()
    model.save_pretrained(folder / "source")
    write_heads(folder / "heads", make_heads(model, "vanilla", head_dim=16))
    # An eighth of the budget is a chunk.
    sizes = SIZES | {"kv_budget": 160, "max_seq_len": 320, "verify_width": 3}
    config = CompileConfig(
        target="rocm", arch="gfx942", output=folder / "model.dspark", heads=folder / "heads", kv_policy="h2o", **sizes
    )
    return compile_model(str(folder / "source"), config).path


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("hip"))


def test_what_an_artifact_holds(artifact: Path) -> None:
    manifest = Artifact.open(artifact, runnable=False).manifest
    assert (manifest.target.kind, manifest.target.arch, manifest.dtype) == ("rocm", "gfx942", "bfloat16")
    libraries = {Path(name).name for name in manifest.files if name.startswith("lib/")}
    assert {"model.so", "libtvm_runtime.so"} < libraries
    assert any(name.startswith("libdspark_rocm") for name in libraries)
    report = json.loads((artifact / "report.json").read_text())
    assert report["check"] == "skipped: this machine cannot run gfx942"


def test_every_entry_point_is_launched_as_hip_wants_it(artifact: Path, machine: Machine) -> None:
    done = machine.run("-c", ALL_ENTRIES, str(artifact))
    assert (done.returncode, done.stderr) == (0, "")
    assert not [line for line in machine.log() if line.startswith("WRONG")]
    entries = ["accept_1", "accept_3", "commit", "decode", "draft", "evict", "prefill_20", "verify_3"]
    assert done.stdout.split() == entries
    graphs = [line for line in machine.log() if line.startswith("graph of")]
    assert len(graphs) >= len(entries)
    assert "loaded for gfx942" in machine.log()


def test_kernels_take_no_more_than_there_is(artifact: Path, tmp_path: Path) -> None:
    made = kernels_in(artifact / "lib/model.so")
    fits(made, "gfx942")
    for kind in ("block_step", "ring_prologue", "attention_mass", "select_slots", "token_probs", "draw", "accept"):
        assert any(name.startswith(kind) for name in made.kernels), kind
    wide = next(name for name in made.kernels if name.startswith("linear_20x32x"))
    assert any(line.startswith("v_mfma") for line in made.instructions(tmp_path, wide))


def test_tokens_come_by_graphs(artifact: Path, machine: Machine) -> None:
    done = machine.generate(artifact)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["tokens"]) == NEW_TOKENS  # whatever they are: the fake computes nothing
    assert sum(line.startswith("graph of") for line in machine.log()) >= 2


def test_the_device_that_was_asked_for(artifact: Path, machine: Machine) -> None:
    gpus = "gfx1100,gfx942:sramecc+:xnack-"
    assert machine.generate(artifact, "--device", "1", FAKE_HIP_GPUS=gpus).returncode == 0
    line = machine.refuses(artifact, "--device", "2", FAKE_HIP_GPUS=gpus)
    assert line.endswith("there is none of this number; this machine has 0: Fake Instinct 0, 1: Fake Instinct 1")


def test_kernels_are_launched_one_by_one_where_they_cannot_be_captured(artifact: Path, machine: Machine) -> None:
    done = machine.generate(artifact, FAKE_HIP_FAIL="hipStreamBeginCapture:1:900")
    assert (done.returncode, done.stderr) == (0, "")
    assert not any(line.startswith("graph of") for line in machine.log())


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"FAKE_HIP_GPUS": "gfx1100"}, "compiled for gfx942, device 0 is Fake Instinct 0 (gfx1100); compile it for"),
        ({"FAKE_HIP_GPUS": ""}, "the HIP runtime serves none: no ROCm-capable device is detected; see rocminfo"),
        ({"LD_LIBRARY_PATH": ""}, "this machine has no HIP runtime (libamdhip64.so); install AMD's driver and ROCm 6"),
        ({"FAKE_HIP_MEMORY": "100000"}, "do not fit the GPU: 0.00 of its 0.00 GB are free; end what else runs on it"),
        ({"FAKE_HIP_FAIL": "hipMalloc:12:2"}, "out of memory (error 2)"),
        (
            {"FAKE_HIP_FAIL": "hipModuleLoadData:1:209"},
            "loading code for gfx942 on device 0 (Fake Instinct 0): no ",
        ),
        ({"FAKE_HIP_FAIL": "hipGraphLaunch:3:719"}, "error: hipGraphLaunch: unspecified launch failure (error 719)"),
    ],
    ids=["other GPU", "no GPU", "no HIP", "too small", "no memory", "other code", "lost"],
)
def test_what_goes_wrong_is_one_line(variables: dict[str, str], said: str, artifact: Path, machine: Machine) -> None:
    assert said in machine.refuses(artifact, **variables)


def test_an_architecture_has_to_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    need_rocm()
    with pytest.raises(InputError, match=r"--arch gfx803: the rocm target knows gfx90a \(MI210, MI250\), gfx942 "):
        create_backend("rocm", "gfx803")
    with pytest.raises(InputError, match="no AMD GPU here to compile for; give --arch gfx90a, gfx942, gfx1100"):
        create_backend("rocm", None)


def test_what_compiling_lacks_is_said_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find_lld", lambda: None)
    monkeypatch.setattr(tools, "find_bitcode", lambda: None)
    wanted = r"needs lld 17 or later \(Debian: apt install lld-19; .*\) and ROCm's device libraries, ocml\.bc \("
    with pytest.raises(BackendUnavailableError, match=wanted):
        create_backend("rocm", "gfx942")


def test_quality_is_measured_where_the_gpu_is(tmp_path: Path) -> None:
    need_rocm()
    config = CompileConfig(target="rocm", arch="gfx942", max_quality_loss=0.1)
    with pytest.raises(InputError, match="--max-quality-loss measures on this machine, which cannot run --arch gfx942"):
        compile_model(str(tmp_path), config)


def test_nothing_is_tuned_yet() -> None:
    with pytest.raises(InputError, match="--tune-trials 8: nothing is measured for --target rocm yet"):
        CompileConfig(target="rocm", tune_trials=8)
