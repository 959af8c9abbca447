"""Tensors that share allocations, on a GPU that is none."""

from itertools import pairwise

import pytest

from dspark_compiler.artifact import TensorInfo
from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.gpu_memory import ALIGNMENT, Slab
from tests.runtime.fake_cuda import FakeCuda

SIZES = {"a": 1000, "b": 1, "c": 2048, "d": 3000}
DESCRIBED = {name: TensorInfo((size,), "uint8") for name, size in SIZES.items()}


@pytest.mark.parametrize(
    ("largest", "parts"),
    [(None, [1024 + 256 + 2048 + 3072]), (1 << 20, [6400]), (3328, [3328, 3072]), (3072, [1280, 2048, 3072])],
)
def test_allocations_hold_as_many_as_they_can(largest: int | None, parts: list[int]) -> None:
    slab = Slab(FakeCuda(), DESCRIBED, (1, 0), largest)
    assert [size for _, size in slab.parts] == parts
    assert slab.size == 6400
    assert slab.address == slab.parts[0][0]
    taken = []
    for name, tensor in slab.tensors.items():
        begin = tensor.data_ptr()
        (address, size) = next(part for part in slab.parts if part[0] <= begin < part[0] + part[1])
        assert (begin - address) % ALIGNMENT == 0
        assert begin + SIZES[name] <= address + size
        taken.append((begin, begin + SIZES[name]))
    taken.sort()
    assert all(one[1] <= following[0] for one, following in pairwise(taken))


def test_a_tensor_that_is_too_large_for_any_allocation() -> None:
    with pytest.raises(
        DeviceError, match=r"^d has 0\.00 GB, the device allows 0\.00 GB in one piece; compile quantized"
    ):
        Slab(FakeCuda(), DESCRIBED, (1, 0), 2900)


def test_no_tensors_at_all() -> None:
    slab = Slab(FakeCuda(), {}, (1, 0), 4096)
    assert (slab.size, slab.parts, slab.tensors) == (0, [(slab.address, ALIGNMENT)], {})
