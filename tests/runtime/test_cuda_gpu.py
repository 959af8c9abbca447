"""Running on a GPU: the toy model's kernels on one thread of it, through graphs, with and without drafts."""

import numpy as np
import pytest

from dspark_compiler.artifact import Artifact, TensorInfo
from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.drafts import CompiledDrafter
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.gpu_device import GpuDevice, open_cuda
from dspark_compiler.runtime.gpu_memory import Slab, upload
from dspark_compiler.runtime.sampling import SamplingParams
from dspark_compiler.runtime.speculative import Speculative
from dspark_compiler.runtime.strategy import Autoregressive
from tests.gpu import need_gpu
from tests.runtime import toy, toy_heads
from tests.runtime.test_cuda_device import expected, tokens

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    need_gpu(toy.CUDA_ARCH)
    folder = tmp_path_factory.mktemp("gpu")
    return Artifact.open(toy_heads.write(folder / "toy.dspark", drafter=True, draws=True, cuda=True))


@pytest.fixture(scope="module")
def executor(artifact: Artifact) -> Executor:
    return Executor(artifact)


def test_plain_and_speculative_tokens_are_the_references(executor: Executor) -> None:
    params = SamplingParams(max_new_tokens=25)
    rounds = Speculative(executor, CompiledDrafter(executor), executor.block_size)
    for strategy in (Autoregressive(executor), rounds, Autoregressive(executor), rounds):
        assert tokens(executor, strategy, params) == expected()
    assert executor.device.obstacle is None
    assert executor.device.peak_memory_bytes() > 0


def test_a_penalty_reads_logits(executor: Executor) -> None:
    params = SamplingParams(max_new_tokens=25, repetition_penalty=1.2)
    rounds = Speculative(executor, CompiledDrafter(executor), executor.block_size)
    made = [tokens(executor, strategy, params) for strategy in (Autoregressive(executor), rounds)]
    assert made[0] == made[1]
    assert made[0] != expected()


def test_verify_and_commit(executor: Executor) -> None:
    reference = toy.Reference()
    for turn in range(3):
        prompt = [3, 4, 5, 6, 7 + turn]
        for row in range(toy.BATCH):
            np.testing.assert_array_equal(executor.prefill(row, prompt, 0, 0), reference.logits(prompt))
        drafts = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
        logits = executor.verify(drafts, 5 + np.tile(np.arange(3), (3, 1)), [5, 5, 5])
        for row in range(toy.BATCH):
            for i in range(toy.VERIFY):
                np.testing.assert_array_equal(logits[row, i], reference.logits([*prompt, *drafts[row, : i + 1]]))
        executor.commit([5, 5, 5], [0, 2, 3])
        found = executor.decode([11] * 3, [5, 7, 8], [5, 7, 8], [1, 1, 1])
        for row, accepted in enumerate([0, 2, 3]):
            np.testing.assert_array_equal(found[row], reference.logits([*prompt, *drafts[row, :accepted], 11]))


def test_uploads_arrive_whole(executor: Executor, artifact: Artifact) -> None:
    device = open_cuda(artifact)
    rng = np.random.default_rng()
    arrays = {f"w{i}": rng.integers(0, 255, size, np.uint8) for i, size in enumerate((1, 255, 70 << 20, 1 << 20))}
    described = {name: TensorInfo(array.shape, "uint8") for name, array in arrays.items()}
    slab = Slab(device.cuda, described, device.where)
    upload(device.cuda, arrays, slab)
    for name, array in arrays.items():
        (found,) = device.fetch(slab.tensors[name]).arrays()
        np.testing.assert_array_equal(found, array)


def test_too_much_memory_is_one_line_with_numbers(executor: Executor, artifact: Artifact) -> None:
    device = open_cuda(artifact)
    assert isinstance(device, GpuDevice)
    with pytest.raises(
        DeviceError, match=r"^cudaMalloc: out of memory \(error 2\); \d+\.\d\d of \d+\.\d\d GB are free$"
    ):
        Slab(device.cuda, {"huge": TensorInfo((1 << 42,), "uint8")}, device.where)
