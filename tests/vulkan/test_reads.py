"""The kernel that measures how fast memory is read."""

from pathlib import Path

import numpy as np
import pytest

from dspark_compiler.bench import vulkan_reads
from dspark_compiler.bench.vulkan_reads import VulkanReads
from dspark_compiler.runtime.vulkan import VulkanRuntime
from tests.vulkan.kernels import assemble


def test_the_best_round_counts_and_the_buffer_is_given_back() -> None:
    vulkan = VulkanRuntime(0)
    reads = VulkanReads(vulkan, 0, 20 << 20)
    rates, kept = [], []
    for _ in range(5):
        before, _ = vulkan.memory()
        rates.append(reads.measure(2))
        kept.append(before - vulkan.memory()[0])
    assert min(rates) > 0
    assert reads.bytes_per_second == np.median(rates)
    assert min(kept) <= 0  # other processes may take memory of the device meanwhile, but hardly each time


def test_the_kernel_is_what_its_assembly_says() -> None:
    source = Path(vulkan_reads.__file__).with_name("read.spvasm").read_text()
    assert assemble(source) == vulkan_reads._KERNEL.read_bytes()


@pytest.mark.parametrize("size", [1, 1000])
def test_a_buffer_smaller_than_one_round_of_threads(size: int) -> None:
    assert VulkanReads(VulkanRuntime(0), 0, 16 * size).measure(1) > 0
