"""Opening artifacts: what was written comes back, and whatever is wrong is one clear error."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dspark_compiler.artifact import Artifact, ArtifactWriter, EntrySpec, KVInfo, Manifest, ModelInfo, TargetInfo, host
from dspark_compiler.artifact.files import describe
from dspark_compiler.artifact.nvidia import Driver, Gpu, runs_on
from dspark_compiler.artifact.vulkan import Vulkan, VulkanDevice
from dspark_compiler.errors import ArtifactError, InputError

MACHINE = os.uname().machine


def manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "compiler_version": "0.1.0",
        "tvm_version": "0.27",
        "model": ModelInfo("m", "A", "a", 8, 4, 1, 16, None, (2,)),
        "target": TargetInfo("cpu", "native", f"{MACHINE}-unknown-linux-gnu"),
        "dtype": "float32",
        "max_seq_len": 16,
        "max_batch": 1,
        "kv": KVInfo(16, "float32"),
        "entry_points": {
            "prefill_4": EntrySpec("prefill", 1, 4, (), (), ("w",), ()),
            "decode": EntrySpec("decode", 1, 1, (), (), ("w",), ()),
        },
        "states": {},
    }
    return Manifest(**(fields | changes))


def write(path: Path, seed: int = 0, size: int = 1000, **changes: object) -> Path:
    with ArtifactWriter(path) as writer:
        writer.add_params([("w", np.full(size, seed, np.float32)), ("v", np.arange(size, dtype=np.float32))])
        writer.add_bytes("lib/model.so", b"code" * 100)
        writer.add_json("report.json", {"seed": seed})
        return writer.finish(manifest(**changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "m.dspark")


def test_what_was_written_comes_back(path: Path) -> None:
    artifact = Artifact.open(path)
    assert (artifact.params()["w"] == 0).all()
    assert artifact.params()["v"][-1] == 999
    assert artifact.read_text("report.json") == '{\n "seed": 0\n}\n'
    assert artifact.read_text("tokenizer.json") is None
    assert set(artifact.manifest.files) == {"lib/model.so", "params/00001.safetensors", "report.json"}
    assert artifact.size() == sum(
        f.stat().st_size for f in path.rglob("*") if f.is_file() and f.name != "manifest.json"
    )
    assert dataclasses.replace(artifact.manifest, files={}, params={}) == manifest()


def test_files_the_manifest_does_not_name_are_not_read(path: Path) -> None:
    (path / "generation_config.json").write_text('{"eos_token_id": 0}')
    assert Artifact.open(path).read_text("generation_config.json") is None


def fails(path: Path, message: str, **options: bool) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        Artifact.open(path, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path: Path) -> None:
    fails(tmp_path / "none", "no such artifact")
    (tmp_path / "file").write_text("x")
    fails(tmp_path / "file", "no such artifact")


def test_no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()
    fails(path, r"not an artifact, its manifest\.json cannot be read")


def test_manifest_cut_short(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text[: len(text) // 2])
    fails(path, "not valid JSON")


def test_newer_format(path: Path) -> None:
    data = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(data | {"format_version": 9}))
    fails(path, "format 9 is newer.*upgrade")


@pytest.mark.parametrize("name", ["lib/model.so", "params/00001.safetensors", "report.json"])
@pytest.mark.parametrize("verify", [True, False])
def test_missing_and_wrong_sizes_are_found_even_without_hashes(path: Path, name: str, verify: bool) -> None:
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-1])
    fails(path, f"{name}: cut short, {len(content) - 1} bytes where the manifest says {len(content)}", verify=verify)
    (path / name).write_bytes(content + b"x")
    fails(path, f"{name}: too long", verify=verify)
    (path / name).unlink()
    fails(path, f"{name}: missing", verify=verify)
    (path / name).mkdir()
    fails(path, f"{name}: missing", verify=verify)


def test_an_edited_file_is_found_by_its_hash_unless_told_not_to(path: Path) -> None:
    file = path / "params/00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    fails(path, r"params/00001\.safetensors: was changed.*--no-verify")
    Artifact.open(path, verify=False)


def test_a_link_out_of_the_folder(path: Path, tmp_path: Path) -> None:
    shutil.copy(path / "report.json", tmp_path / "elsewhere")
    (path / "report.json").unlink()
    (path / "report.json").symlink_to(tmp_path / "elsewhere")
    fails(path, r"report\.json: leads out of the artifact", verify=False)


def test_an_artifact_reached_through_a_link_is_fine(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    Artifact.open(tmp_path / "link")


def test_a_relative_path_is_fine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path)
    Artifact.open(".")


def test_an_unreadable_text_file(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "a") as writer:
        writer.add_params([("w", np.zeros(1, np.float32))])
        writer.add_bytes("tokenizer.json", b"\xff\xfe")
        writer.finish(manifest())
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: cannot be read"):
        Artifact.open(tmp_path / "a").read_text("tokenizer.json")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            TargetInfo("abacus", "beads", f"{MACHINE}-linux"),
            "was compiled for abacus, this version runs cpu, cuda, rocm, vulkan, onnxruntime;",
        ),
        (TargetInfo("cpu", "a", "riscv64-unknown-linux-gnu"), f"compiled for riscv64.*this machine is {MACHINE}"),
        (
            TargetInfo("cpu", "future", f"{MACHINE}-linux", ("avx9001", "warp-drive")),
            "compiled for future, this processor lacks avx9001, warp-drive; compile again with --arch x86-64-v3",
        ),
    ],
)
def test_another_machine(tmp_path: Path, target: TargetInfo, message: str) -> None:
    path = write(tmp_path / "m.dspark", target=target)
    fails(path, message)
    assert Artifact.open(path, runnable=False).manifest.target == target


H200, L40 = Gpu("NVIDIA H200", (9, 0), 1 << 37), Gpu("NVIDIA L40", (8, 9), 1 << 35)


@pytest.mark.parametrize(
    ("arch", "driver", "message"),
    [
        ("sm_90a", None, r"compiled for Nvidia GPUs \(sm_90a\), this machine has no driver of theirs"),
        ("sm_90a", Driver((12, 8), (H200,)), r"needs a driver for CUDA 13\.0 .* this machine's is for CUDA 12\.8"),
        ("sm_90a", Driver((13, 0), (), "no device"), r"the driver offers this process none \(no device\)"),
        ("sm_90a", Driver((13, 1), (L40, H200)), r"compiled for sm_90a, this machine has an NVIDIA L40 \(sm_89\)"),
        ("sm_90a", Driver((13, 1), (H200, L40)), None),
        ("sm_80", Driver((13, 0), (L40,)), None),
    ],
)
def test_another_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, driver: Driver | None, message: str | None
) -> None:
    monkeypatch.setattr(host, "find_driver", lambda: driver)
    path = write(tmp_path / "m.dspark", target=TargetInfo("cuda", arch, f"{MACHINE}-linux"))
    if message is None:
        Artifact.open(path)
    else:
        fails(path, message)


NEEDED = frozenset({"int16", "int64", "storage16", "subgroup_shuffle"})
LAVAPIPE = VulkanDevice("llvmpipe", "Mesa", (1, 3), 8, (8, 8), NEEDED, 1 << 31, 1 << 31)
ARC = VulkanDevice("Arc", "Mesa", (1, 3), 32, (8, 32), NEEDED, 1 << 34, 1 << 32)
PHONE = VulkanDevice("Phone", "", (1, 2), 16, (16, 16), NEEDED - {"int64"}, 1 << 30, 1 << 28)
OLD = VulkanDevice("old", "", (1, 1), 0, (0, 0), frozenset(), 1 << 30, 0, "offers Vulkan 1.1, 1.2 is needed")


@pytest.mark.parametrize(
    ("arch", "number", "vulkan", "message"),
    [
        ("generic", 0, None, r"compiled for Vulkan, this machine has no loader \(libvulkan\.so\.1\); install it"),
        ("generic", 0, Vulkan((), "no driver is installed"), r"has no device \(no driver is installed\); install"),
        ("generic", 1, Vulkan((ARC, OLD)), r"Vulkan device 1 \(old, \) offers Vulkan 1\.1, 1\.2 is needed; install"),
        (
            "subgroup32",
            0,
            Vulkan((LAVAPIPE,)),
            r"for subgroup32, Vulkan device 0 \(llvmpipe, Mesa\) has subgroups of 8",
        ),
        ("generic", 0, Vulkan((PHONE,)), r"device 0 \(Phone, \) lacks int64, which kernels need; use another"),
        ("subgroup32", 1, Vulkan((LAVAPIPE, ARC)), None),
        ("subgroup16", 0, Vulkan((ARC,)), None),
        ("generic", 0, Vulkan((LAVAPIPE,)), None),
    ],
)
def test_another_vulkan_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, number: int, vulkan: Vulkan | None, message: str | None
) -> None:
    monkeypatch.setattr(host, "find_vulkan", lambda: vulkan)
    path = write(tmp_path / "m.dspark", target=TargetInfo("vulkan", arch, f"{MACHINE}-linux"))
    if message is None:
        assert Artifact.open(path, device=number).device == number
    else:
        with pytest.raises(ArtifactError, match=message):
            Artifact.open(path, device=number)


@pytest.mark.parametrize("number", [-1, 2])
def test_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(host, "find_vulkan", lambda: Vulkan((ARC, LAVAPIPE)))
    monkeypatch.setattr(host, "find_driver", lambda: Driver((13, 1), (H200,)))
    vulkan = write(tmp_path / "v.dspark", target=TargetInfo("vulkan", "generic", f"{MACHINE}-linux"))
    with pytest.raises(InputError, match=rf"^--device {number}: .* this machine has 0: Arc, 1: llvmpipe$"):
        Artifact.open(vulkan, device=number)
    cuda = write(tmp_path / "c.dspark", target=TargetInfo("cuda", "sm_90a", f"{MACHINE}-linux"))
    with pytest.raises(InputError, match=rf"^--device {number}: .* this machine has 0: NVIDIA H200$"):
        Artifact.open(cuda, device=number)
    cpu = write(tmp_path / "p.dspark")
    with pytest.raises(InputError, match=rf"^--device {number}: .* compiled for the processor, which is one device, 0"):
        Artifact.open(cpu, device=number)


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
        ("sm_100f", (10, 3), False),  # of the same family, which is not told from here
        ("sm_80", (8, 9), True),
        ("sm_89", (8, 6), False),
        ("sm_80", (9, 0), False),
        ("sm_120", (12, 0), True),
    ],
)
def test_what_code_runs_on(arch: str, capability: tuple[int, int], runs: bool) -> None:
    assert runs_on(arch, capability) is runs


def test_features_in_either_spelling() -> None:
    flags = frozenset(["fma", "avx2", "pni", "abm", "sse4_2", "avx512_vnni", "amx_tile"])
    needed = ("fma", "avx2", "sse3", "lzcnt", "sse4.2", "sse4_2", "avx512vnni", "avx512_vnni", "amx-tile")
    assert host.missing_features(needed, flags) == []
    assert host.missing_features(("avx512f", "fma", "avx"), flags) == ["avx512f", "avx"]


def test_flags_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "cpuinfo")
    assert host.cpu_flags() is None
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx2\nflags\t\t: other\n")
    assert host.cpu_flags() == {"fpu", "avx2"}
    (tmp_path / "cpuinfo").write_text("Features : asimd\n")
    assert host.cpu_flags() == {"asimd"}


def test_describe_leaves_the_manifest_out(path: Path) -> None:
    assert describe(path) == Artifact.open(path).manifest.files
