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
from dspark_compiler.runtime.cuda import CudaRuntime
from dspark_compiler.runtime.dlpack import Wrapping

ALIGNMENT = 256  # bytes; kernels load up to 128 at a time

# Pieces that weights are copied in: large enough for the bus, small enough that reading and sending overlap.
_PIECE_BYTES = 32 << 20
_READERS = 4  # one core reads from the page cache about a quarter as fast as the bus takes it


Described = Mapping[str, NamedTensor | ParamInfo | TensorInfo]


class Slab:
    """One allocation that several tensors lie in, in order. They must not be used when it is gone.

    Attributes:
        size: bytes.
        address: where it begins.
        tensors: by name; what they hold is undefined at first.
        offsets: where each begins in it.
    """

    def __init__(self, cuda: CudaRuntime, described: Described, device: tuple[int, int]) -> None:
        """``device``: DLPack's type and number."""
        sizes = [_padded(nbytes(tensor)) for tensor in described.values()]
        *offsets, self.size = accumulate(sizes, initial=0)
        self.offsets = dict(zip(described, offsets, strict=True))
        self.address = cuda.allocate(max(self.size, ALIGNMENT))
        weakref.finalize(self, cuda.release, self.address).atexit = False
        self.tensors = {
            name: Wrapping(self.address + self.offsets[name], tensor.shape, tensor.dtype, device).tensor
            for name, tensor in described.items()
        }


def slab_bytes(described: Described) -> int:
    """What a slab of these takes."""
    return sum(_padded(nbytes(tensor)) for tensor in described.values())


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def upload(cuda: CudaRuntime, arrays: Mapping[str, NDArray[Any]], slab: Slab) -> None:
    """Copies arrays to the tensors of their names; returns when they are there.

    Several threads read pieces, from mapped files as a rule, into pinned memory of their own, and send each while the
    next is read.
    """
    pieces = [
        (array.reshape(-1).view(np.uint8)[begin : begin + _PIECE_BYTES], slab.address + slab.offsets[name] + begin)
        for name, array in arrays.items()
        for begin in range(0, array.nbytes, _PIECE_BYTES)
    ]
    queue: SimpleQueue[tuple[NDArray[np.uint8], int] | None] = SimpleQueue()
    for piece in (*pieces, *[None] * _READERS):
        queue.put(piece)
    with ThreadPoolExecutor(_READERS) as pool:
        for reader in [pool.submit(_send, cuda, queue) for _ in range(_READERS)]:
            reader.result()


def _send(cuda: CudaRuntime, queue: "SimpleQueue[tuple[NDArray[np.uint8], int] | None]") -> None:
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
