"""Random weights for an artifact that was written without any: on the GPU, or in files."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dspark_compiler.artifact import Artifact, ArtifactWriter, nbytes
from dspark_compiler.runtime.gpu_device import GpuDevice, open_cuda
from dspark_compiler.runtime.library import load_functions
from dspark_compiler.runtime.vulkan_device import open_vulkan

_ROPE_THETA = 1e6
_SPREAD = 0.02  # standard deviation of matrices
_PIECE_BYTES = 32 << 20
_BLOCK = 1 << 24  # random numbers that files repeat: what is in them does not matter to how fast they are read


def random_device(artifact: Artifact) -> GpuDevice:
    """The GPU, its weights random."""
    import torch

    load_functions(artifact, None)
    if artifact.manifest.target.kind == "vulkan":
        torch.manual_seed(0)
        return open_vulkan(artifact, fill_from_host)
    torch.zeros(1, device="cuda")
    torch.manual_seed(0)
    return open_cuda(artifact, fill)


def fill(device: GpuDevice, tensors: Mapping[str, Any]) -> None:
    """Gives each weight numbers of a size that keeps the model's hidden states finite."""
    import torch

    for name, to in tensors.items():
        numbers = _numbers(name, tuple(to.shape), getattr(torch, str(to.dtype)), "cuda")
        torch.cuda.synchronize()
        device.cuda.copy(to.data_ptr(), numbers.data_ptr(), numbers.nbytes, device.stream)
        device.cuda.synchronize(device.stream)


def fill_from_host(device: GpuDevice, tensors: Mapping[str, Any]) -> None:
    """As ``fill`` does, for a device whose memory torch does not reach."""
    import torch

    staging = device.cuda.pinned(_PIECE_BYTES)
    made_on = "cuda" if torch.cuda.is_available() else "cpu"
    for name, to in tensors.items():
        numbers = _numbers(name, tuple(to.shape), getattr(torch, str(to.dtype)), made_on)
        content = numbers.reshape(-1).view(torch.uint8).cpu().numpy()
        for begin in range(0, content.size, _PIECE_BYTES):
            piece = content[begin : begin + _PIECE_BYTES]
            staging[: piece.size] = piece
            device.cuda.copy(to.data_ptr() + begin, staging.ctypes.data, piece.size, device.stream)
            device.cuda.synchronize(device.stream)


def _numbers(name: str, shape: tuple[int, ...], dtype: Any, device: str) -> Any:
    """A tensor of torch's on its device of this name."""
    import torch

    numbers = torch.empty(shape, dtype=dtype, device=device)
    if name.endswith("inv_freq"):
        return numbers.copy_(_ROPE_THETA ** (-torch.arange(numbers.numel(), device=device) / numbers.numel()))
    if name.endswith(".scales"):
        if dtype.is_floating_point:  # codes are up to 127
            return numbers.fill_(_SPREAD / 74)
        numbers.view(torch.bfloat16).fill_(_SPREAD / 4.6)  # pairs of scales; codes are from -8 to 7
        return numbers
    if not dtype.is_floating_point:
        numbers.view(torch.uint8).random_(0, 256)  # codes, perhaps several in a word
        return numbers
    return numbers.normal_(1, 0.1) if numbers.ndim == 1 else numbers.normal_(0, _SPREAD)


def write_filled(artifact: Artifact, output: Path, params: Iterator[tuple[str, np.ndarray]] | None = None) -> Path:
    """The artifact with weights in its files: ``params``, or random ones."""
    with ArtifactWriter(output) as writer:
        for name in artifact.manifest.files:
            if not name.startswith("params/"):
                writer.add_file(artifact.path / name, name)
        writer.add_params(_arrays(artifact) if params is None else params, bfloat16="bfloat16")
        return writer.finish(artifact.manifest)


def _arrays(artifact: Artifact) -> Iterator[tuple[str, np.ndarray]]:
    block = np.random.default_rng(0).standard_normal(_BLOCK, np.float32) * np.float32(_SPREAD)
    made: dict[str, np.ndarray] = {}
    for name, info in artifact.manifest.params.items():
        kind = np.dtype(ml_dtypes.bfloat16) if info.dtype == "bfloat16" else np.dtype(info.dtype)
        if info.dtype not in made:
            made[info.dtype] = block.astype(kind) if kind.kind in "fV" else block.view(np.uint8).view(kind)
        array = np.resize(made[info.dtype], math.prod(info.shape)).reshape(info.shape)
        assert array.nbytes == nbytes(info)
        yield name, array
