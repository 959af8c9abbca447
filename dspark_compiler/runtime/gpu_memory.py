"""Memory on the GPU: tensors that share one allocation, and filling them from the host through pinned memory."""

import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.artifact import NamedTensor, ParamInfo, TensorInfo, nbytes
from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.dlpack import Wrapping
from dspark_compiler.runtime.gpu import GpuRuntime

ALIGNMENT = 256  # bytes; kernels load up to 128 at a time

# Pieces that weights are copied in: large enough for the bus, small enough that reading and sending overlap.
_PIECE_BYTES = 32 << 20
_READERS = 4  # one core reads from the page cache about a quarter as fast as the bus takes it


Described = Mapping[str, NamedTensor | ParamInfo | TensorInfo]


class Slab:
    """Memory that several tensors lie in, in order: one allocation, or as few as can be. They must not outlive it.

    Attributes:
        size: bytes.
        parts: address and size of each allocation.
        address: where it begins.
        tensors: by name; what they hold is undefined at first.
        offsets: where each would begin if all were one allocation.

    Raises:
        DeviceError: it does not fit, or one of them is larger than an allocation can be.
    """

    def __init__(
        self,
        cuda: GpuRuntime,
        described: Described,
        device: tuple[int, int],
        largest: int | None = None,
        *,
        apart: bool = False,
    ) -> None:
        """``device``: DLPack's type and number; ``largest``: bytes of an allocation; ``apart``: all have their own."""
        sizes = {name: _padded(nbytes(tensor)) for name, tensor in described.items()}
        self.parts: list[tuple[int, int]] = []
        self.tensors: dict[str, Any] = {}
        groups = _grouped(sizes, largest)
        for names in [[name] for name in sizes] if apart and sizes else groups:
            size = max(sum(sizes[name] for name in names), ALIGNMENT)
            address = cuda.allocate(size)
            weakref.finalize(self, cuda.release, address).atexit = False
            self.parts.append((address, size))
            for name in names:
                tensor = described[name]
                self.tensors[name] = Wrapping(address, tensor.shape, tensor.dtype, device).tensor
                address += sizes[name]
        self.address = self.parts[0][0]
        *offsets, self.size = accumulate(sizes.values(), initial=0)
        self.offsets = dict(zip(described, offsets, strict=True))


def _grouped(sizes: Mapping[str, int], largest: int | None) -> list[list[str]]:
    """Names in order, so many together as an allocation can hold; at least one group."""
    groups: list[list[str]] = [[]]
    room = largest
    for name, size in sizes.items():
        if largest is not None and room is not None:
            if size > largest:
                raise DeviceError(
                    f"{name} has {size / 1e9:.2f} GB, the device allows {largest / 1e9:.2f} GB in one piece; "
                    "compile quantized, with a smaller --max-seq-len or --max-batch, or use another device"
                )
            if size > room:
                groups.append([])
                room = largest
            room -= size
        groups[-1].append(name)
    return groups


def slab_bytes(described: Described) -> int:
    """What a slab of these takes."""
    return sum(_padded(nbytes(tensor)) for tensor in described.values())


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def upload(cuda: GpuRuntime, arrays: Mapping[str, NDArray[Any]], slab: Slab) -> None:
    """Copies arrays to the tensors of their names; returns when they are there.

    Several threads read pieces, from mapped files as a rule, into pinned memory of their own, and send each while the
    next is read.
    """
    pieces = [
        (array.reshape(-1).view(np.uint8)[begin : begin + _PIECE_BYTES], slab.tensors[name].data_ptr() + begin)
        for name, array in arrays.items()
        for begin in range(0, array.nbytes, _PIECE_BYTES)
    ]
    queue: SimpleQueue[tuple[NDArray[np.uint8], int] | None] = SimpleQueue()
    for piece in (*pieces, *[None] * _READERS):
        queue.put(piece)
    with ThreadPoolExecutor(_READERS) as pool:
        for reader in [pool.submit(_send, cuda, queue) for _ in range(_READERS)]:
            reader.result()


def _send(cuda: GpuRuntime, queue: "SimpleQueue[tuple[NDArray[np.uint8], int] | None]") -> None:
    stream = cuda.stream()
    halves = [(cuda.pinned(_PIECE_BYTES), cuda.event()) for _ in range(2)]
    turn = 0
    while (piece := queue.get()) is not None:
        source, address = piece
        staging, sent = halves[turn % 2]
        cuda.wait(sent)  # an event that was never put anywhere does not wait
        staging[: source.size] = source
        cuda.copy(address, staging.ctypes.data, source.size, stream)
        cuda.record(sent, stream)
        turn += 1
    cuda.synchronize(stream)
