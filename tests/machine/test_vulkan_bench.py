"""Tuning on a Vulkan device: its kernels are right and timed, and it is known by its family."""

from functools import partial
from pathlib import Path

import pytest

from dspark_compiler.artifact.vulkan import Vulkan, VulkanDevice, find_vulkan
from dspark_compiler.backends import create_backend
from dspark_compiler.machine import gpu_kernels, kernel_bench
from dspark_compiler.machine.gpu_bench import GpuBench
from dspark_compiler.machine.kernel_bench import measured_as, open_bench
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.row_linears import RowLinears
from tests.backends.vulkan.shaders import target
from tests.vulkan.device import need_vulkan


def test_schedules_are_measured_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_vulkan()
    monkeypatch.setattr(gpu_kernels, "_COLD_BYTES", 1)
    monkeypatch.setattr(gpu_kernels, "_ROUNDS", 1)
    linears, work = RowLinears(), LinearWorkload(2, 40, 512, "int8")
    sample, schedules = linears.sample(work), linears.candidates(work)
    builds = [partial(linears.kernel, work, one) for one in schedules]
    libraries = gpu_kernels.compile_kernels(builds, target(), str(tmp_path / "kernels"))
    runs = gpu_kernels.run_kernels(libraries, sample)
    assert len(runs) == len(schedules) == 2
    for run in runs:
        assert run.failure is None
        assert run.output is not None
        assert sample.holds(run.output)
        assert run.microseconds > 0


def test_records_belong_to_a_family_of_devices() -> None:
    need_vulkan()
    backend, found = create_backend("vulkan", None), find_vulkan()
    assert found is not None
    assert measured_as(backend) == f"vulkan-{found.devices[0].family}"
    assert backend.runs_here()
    with open_bench(backend) as bench:
        assert isinstance(bench, GpuBench)


@pytest.mark.parametrize("lacking", ["subgroup_shuffle", "int64"])
def test_a_device_that_lacks_what_kernels_need_is_not_measured_on(lacking: str) -> None:
    features = frozenset({"int16", "int64", "storage16", "subgroup_shuffle"})
    has = VulkanDevice("a", "b", (1, 3), 32, (0, 0), features, 1, 1)
    assert has.runs("generic")
    assert not VulkanDevice("a", "b", (1, 3), 32, (0, 0), features - {lacking}, 1, 1).runs("generic")
    assert not VulkanDevice("a", "b", (1, 3), 4, (0, 0), features, 1, 1).runs("generic")


def test_without_a_device_records_are_those_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    need_vulkan()
    monkeypatch.setattr(kernel_bench, "find_vulkan", lambda: Vulkan(()))
    assert measured_as(create_backend("vulkan", None)) == "generic"
