"""Tensors on their way from the GPU to the host, through pinned memory."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

from numpy.typing import NDArray

from dspark_compiler.runtime.gpu import GpuRuntime, Transfer
from dspark_compiler.runtime.gpu_memory import ALIGNMENT
from dspark_compiler.runtime.launches import Launches

_PLACE_BYTES = 1 << 16  # pinned memory that is fetched into comes in doubles of this

_Arrays = tuple[NDArray[Any], ...]


class Fetches:
    """Copies tensors, so that calls made later do not change them."""

    def __init__(self, cuda: GpuRuntime, launches: Launches) -> None:
        self._cuda = cuda
        self._launches = launches
        self._ways: dict[tuple[Any, ...], _Way] = {}  # the same step by step

    def fetch(self, tensors: tuple[Any, ...]) -> Callable[[], _Arrays]:
        """Waits for these tensors as all calls made so far leave them."""
        way = self._ways.get(tensors)
        if way is None:
            way = self._ways[tensors] = _Way(tensors)
        place = way.places.pop() if way.places else _Place(self._cuda, way)
        self._launches.fetch(place.copies, place.filled)
        return _Arrival(self._cuda, self._launches, place, way.places)


def _pieces(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Addresses and sizes of copies that cover these; what is near each other is one copy."""
    pieces: list[tuple[int, int]] = []
    for begin, size in sorted(ranges):
        if pieces and begin - sum(pieces[-1]) <= ALIGNMENT:
            pieces[-1] = pieces[-1][0], max(pieces[-1][1], begin + size - pieces[-1][0])
        else:
            pieces.append((begin, size))
    return pieces


class _Way:
    """How some tensors are fetched.

    Attributes:
        copies: offset in a place, address and size of each.
        size: bytes of all.
        views: where each tensor lies in a place, from and to, its type and shape.
        places: those that nobody fetches into.
    """

    def __init__(self, tensors: tuple[Any, ...]) -> None:
        ranges = [(tensor.data_ptr(), tensor.numel() * (tensor.dtype.bits // 8)) for tensor in tensors]
        pieces = _pieces(ranges)
        *offsets, self.size = accumulate((size for _, size in pieces), initial=0)
        self.copies = [(offset, address, size) for offset, (address, size) in zip(offsets, pieces, strict=True)]
        self.views: list[tuple[int, int, str, tuple[int, ...]]] = []
        for tensor, (begin, size) in zip(tensors, ranges, strict=True):
            number = next(i for i, (address, length) in enumerate(pieces) if address <= begin < address + length)
            at = offsets[number] + begin - pieces[number][0]
            self.views.append((at, at + size, str(tensor.dtype), tuple(tensor.shape)))
        self.places: list[_Place] = []


class _Place:
    """Pinned memory that tensors are fetched into, and the event that says when they are there."""

    def __init__(self, cuda: GpuRuntime, way: _Way) -> None:
        memory = cuda.pinned(way.size)
        address: int = memory.ctypes.data
        self.filled = cuda.event()
        self.copies = [Transfer(address + offset, source, size) for offset, source, size in way.copies]
        self.arrays = [memory[begin:end].view(dtype).reshape(shape) for begin, end, dtype, shape in way.views]


class _Arrival:
    """Waits for what was fetched; its place can be used again when it was read, or nobody is going to."""

    def __init__(self, cuda: GpuRuntime, launches: Launches, place: _Place, places: list[_Place]) -> None:
        self._cuda, self._launches = cuda, launches
        self._place, self._places = place, places
        self._arrays: _Arrays | None = None

    def __call__(self) -> _Arrays:
        if self._arrays is None:
            self._launches.flush()
            self._cuda.wait(self._place.filled)
            self._arrays = tuple([array.copy() for array in self._place.arrays])
            self._places.append(self._place)
        return self._arrays

    def __del__(self) -> None:
        if self._arrays is None:  # a later fetch into the same place comes after this one's on the stream
            self._places.append(self._place)
