"""What doctor finds, also where much is missing."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from dspark_compiler.artifact.amd import AmdGpu, Hip
from dspark_compiler.artifact.nvidia import Driver, Gpu
from dspark_compiler.artifact.vulkan import Vulkan, VulkanDevice
from dspark_compiler.cli import main
from dspark_compiler.doctor import Finding, Status, can_run, examine, packages, targets
from dspark_compiler.doctor.packages import BASE, COMPILE, package_findings


def doctor(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["doctor", *args])
    return result.exit_code, result.stdout, result.stderr


def test_json_says_all(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = doctor("--json")
    data = json.loads(out)
    assert (code, data["can_run"]) == (0, True)
    found = {(finding["section"], finding["name"]): finding for finding in data["findings"]}
    assert found["compiling", "torch"]["status"] == "ok"
    assert found["running artifacts", "numpy"]["detail"] == metadata.version("numpy")
    assert "GB/s" in found["machine", "read bandwidth"]["detail"]
    assert found["target rocm", "state"]["detail"] == "built and checked, not yet run on hardware"
    assert "bits" in found["target cpu", "vectors"]["detail"]


def test_table_names_sections_and_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.shutil, "which", lambda name, path=None: None)
    code, out, _ = doctor()
    assert code == 0
    assert "target rocm" in out
    assert "apt-get install gcc" in out


@pytest.mark.parametrize(
    ("driver", "wanted"),
    [
        (None, {"driver": ("absent", "no libcuda.so.1 found; compiling needs none")}),
        (
            Driver((12, 4), (Gpu("A100", (8, 0), 40 << 30),)),
            {
                "driver": ("missing", "for CUDA 12.4, artifacts need one for CUDA 13.0"),
                "GPU 0": ("ok", "A100, sm_80, 40 GiB; artifacts run on this one"),
            },
        ),
        (
            Driver((13, 0), (), "no CUDA-capable device is detected"),
            {"driver": ("ok", "for CUDA 13.0"), "GPU": ("absent", "no CUDA-capable device is detected")},
        ),
    ],
)
def test_driver_and_gpus(
    monkeypatch: pytest.MonkeyPatch, driver: Driver | None, wanted: dict[str, tuple[str, str]]
) -> None:
    monkeypatch.setattr(targets, "find_driver", lambda: driver)
    found = {finding.name: (finding.status.value, finding.detail) for finding in targets.cuda_findings()}
    assert {name: found[name] for name in wanted} == wanted
    assert {"compiler", "libcudart"} <= found.keys()


_FEATURES = frozenset(["float16", "int8", "cooperative_matrix"])
_GOOD = VulkanDevice("A770", "Mesa 25", (1, 3), 32, (8, 32), _FEATURES, 16 << 30, 4 << 30)
_OLD = VulkanDevice("GT 710", "", (1, 1), 0, (0, 0), frozenset(), 1 << 30, 0, "offers Vulkan 1.1, 1.2 is needed")


@pytest.mark.parametrize(
    ("vulkan", "wanted"),
    [
        (None, {"loader": ("absent", "no libvulkan.so.1 found (Debian: libvulkan1)")}),
        (
            Vulkan((), "no driver is installed"),
            {
                "device": (
                    "absent",
                    "no driver is installed; the GPU's, or Debian's mesa-vulkan-drivers, would bring one",
                )
            },
        ),
        (
            Vulkan((_GOOD, _OLD)),
            {
                "device 0": (
                    "ok",
                    "A770, Mesa 25, Vulkan 1.3, subgroups of 32, float16, int8, cooperative_matrix, "
                    "16 GiB, at most 4 in one buffer",
                ),
                "device 1": ("missing", "GT 710 offers Vulkan 1.1, 1.2 is needed"),
            },
        ),
    ],
)
def test_vulkan_devices(
    monkeypatch: pytest.MonkeyPatch, vulkan: Vulkan | None, wanted: dict[str, tuple[str, str]]
) -> None:
    monkeypatch.setattr(targets, "find_vulkan", lambda: vulkan)
    found = {finding.name: (finding.status.value, finding.detail) for finding in targets.vulkan_findings()}
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("hip", "wanted"),
    [
        (None, {"HIP": ("absent", "no libamdhip64.so found; compiling needs none")}),
        (Hip((), "it is older than ROCm 6"), {"GPU": ("absent", "it is older than ROCm 6")}),
        (Hip((AmdGpu("MI300X", "gfx942", 192 << 30),)), {"GPU 0": ("ok", "MI300X, gfx942, 192 GiB")}),
    ],
)
def test_amd_gpus(monkeypatch: pytest.MonkeyPatch, hip: Hip | None, wanted: dict[str, tuple[str, str]]) -> None:
    monkeypatch.setattr(targets, "find_hip", lambda: hip)
    found = {finding.name: (finding.status.value, finding.detail) for finding in targets.rocm_findings()}
    assert {name: found[name] for name in wanted} == wanted
    assert {"linker", "device libraries", "runtime"} <= set(found)


def test_a_vulkan_runtime_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = {finding.name: (finding.status.value, finding.detail) for finding in targets.vulkan_findings()}
    status, detail = found["runtime"]
    assert status == "absent"
    assert detail.startswith("cannot be built without a C++ compiler (Debian: g++)")


def requirements(monkeypatch: pytest.MonkeyPatch, *stated: str) -> None:
    monkeypatch.setattr(packages.metadata, "requires", lambda name: list(stated))


def test_table_shows_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements(monkeypatch, 'no-such-package>=1; extra == "compile"')
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = doctor()
    assert "[compile]" in out  # rich would take it for a style


def test_packages_that_are_missing_or_of_a_wrong_version(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements(
        monkeypatch,
        "numpy>=1",
        "rich<1",
        'no-such-package>=3; extra == "compile"',
        'click>=1; extra == "compile"',
        'pytest>=1; extra == "dev"',
        'elsewhere>=1; platform_system == "Plan9" and extra == "compile"',
    )
    base = {finding.name: finding for finding in package_findings(BASE)}
    assert list(base) == ["numpy", "rich", "tvm_ffi loads"]
    assert base["numpy"].status is Status.OK
    assert (base["rich"].status, base["rich"].fix) == (Status.MISSING, "pip install 'rich<1'")
    missing, click = package_findings(COMPILE)
    assert (missing.status, missing.fix) == (Status.MISSING, "pip install 'dspark-compile[compile]'")
    assert click.status is Status.OK


def test_an_installation_that_is_not_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "requires", requires)
    (finding,) = package_findings(BASE)
    assert (finding.status, finding.fix) == (Status.MISSING, "pip install dspark-compile")


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise OSError("first line\nlibstdc++.so.6: version not found")

    monkeypatch.setattr(packages, "import_tvm_ffi", load)
    *_, finding = package_findings(BASE)
    assert (finding.status, finding.detail) == (Status.MISSING, "libstdc++.so.6: version not found")
    assert not can_run([finding])


def test_only_the_base_decides_what_can_run() -> None:
    assert can_run([Finding(COMPILE, "torch", Status.MISSING, "")])
    assert not can_run([Finding(BASE, "numpy", Status.MISSING, "")])


def test_exit_code_when_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements(monkeypatch, "no-such-package")
    code, out, err = doctor("--json")
    assert code == 2
    assert json.loads(out)["can_run"] is False
    assert err.startswith("error: nothing can run here")


def test_works_without_torch_and_tvm() -> None:
    hide = (
        "import importlib.util, sys; sys.modules.update(dict.fromkeys(('torch', 'tvm', 'transformers'))); "
        "find = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name: None if name == 'tvm' else find(name); "
    )
    run = "from dspark_compiler.cli import main; main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", hide + run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "known once the packages for compiling are installed" in " ".join(done.stdout.split())


def test_examines_each_section_once() -> None:
    sections = [finding.section for finding in examine()]
    assert sections == sorted(sections, key=list(dict.fromkeys(sections)).index)


def test_onnx_runtime_is_named_with_its_version_or_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = targets.onnxruntime_findings()
    assert found.status is Status.OK
    assert found.detail.startswith("onnxruntime")
    monkeypatch.setattr(targets, "_version", lambda package: None)
    (found,) = targets.onnxruntime_findings()
    assert (found.status, found.detail) == (Status.ABSENT, "not installed; pip install onnxruntime, or -gpu")
