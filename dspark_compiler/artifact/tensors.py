"""Weights in safetensors files whose tensors all start on a 64-byte boundary, written one at a time and memory-mapped.

Layout (safetensors format): uint64 little-endian header length, JSON header padded with spaces, then the data
without gaps. The format allows no holes, so a boundary is reached with filler tensors named ``_pad.N``.
"""

import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from dspark_compiler.artifact.manifest import ParamInfo
from dspark_compiler.errors import ArtifactError

ALIGNMENT = 64  # compiled kernels use aligned vector loads

# Reserved in front of the data, since the header is only known once all tensors went by. With the length field it
# is a multiple of the alignment. Some 500 tensors fit.
_HEADER_BYTES = (1 << 16) - 8
# Small enough that a model is several files, which are hashed in parallel.
SHARD_BYTES = 256 << 20

_BLOCK_BYTES = 4 << 20  # a multiple of the huge pages of x86-64 and AArch64

_MADV_POPULATE_READ = 22  # Linux 5.14; not in the mmap module

_CODES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "bfloat16": "BF16",
}
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class _BlockFile:
    """A file written in whole, aligned blocks, so that Linux can cache and map it in huge pages.

    Reading weights through 4 KB pages costs a tenth to a fifth of the memory bandwidth.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._pending = bytearray()

    def write(self, data: memoryview) -> None:
        """Appends; what does not fill a block waits."""
        self._pending += data
        whole = len(self._pending) // _BLOCK_BYTES * _BLOCK_BYTES
        if whole:
            with memoryview(self._pending) as pending:
                self._write_all(pending[:whole])
            del self._pending[:whole]

    def write_start(self, data: bytes) -> None:
        """Overwrites the file's first bytes, after everything else has been written."""
        self._write_all(memoryview(self._pending))
        self._pending = bytearray()
        self._file.seek(0)
        self._write_all(memoryview(data))

    def close(self) -> None:
        """Closes the file as it is."""
        self._file.close()

    def _write_all(self, data: memoryview) -> None:
        while data.nbytes:  # an unbuffered write may take a part only
            data = data[self._file.write(data) :]


class _Shard:
    """One safetensors file while it is written."""

    def __init__(self, path: Path) -> None:
        self._file = _BlockFile(path)
        self._file.write(memoryview(bytes(8 + _HEADER_BYTES)))
        self._entries: list[str] = []
        self._header_bytes = 2
        self.data_bytes = 0

    def has_room(self, name: str) -> bool:
        """Whether one more tensor and its filler surely fit in the header."""
        return self._header_bytes + len(json.dumps(name)) + 400 < _HEADER_BYTES

    def append(self, name: str, array: NDArray[Any]) -> None:
        self._write(name, array.dtype.name, array.shape, array.reshape(-1).view(np.uint8).data)
        if gap := -self.data_bytes % ALIGNMENT:
            self._write(f"_pad.{len(self._entries)}", "uint8", (gap,), memoryview(bytes(gap)))

    def _write(self, name: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        end = self.data_bytes + data.nbytes
        info = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [self.data_bytes, end]}
        entry = f"{json.dumps(name)}:{json.dumps(info, separators=(',', ':'))}"
        self._file.write(data)
        self._entries.append(entry)
        self._header_bytes += len(entry) + 1
        self.data_bytes = end

    def close(self) -> None:
        """Writes the header and closes the file."""
        header = ("{" + ",".join(self._entries) + "}").encode()
        self._file.write_start(_HEADER_BYTES.to_bytes(8, "little") + header.ljust(_HEADER_BYTES))
        self._file.close()

    def abandon(self) -> None:
        """Closes the file as it is."""
        self._file.close()


def write_params(
    folder: Path,
    params: Iterable[tuple[str, NDArray[Any]]],
    shard_bytes: int = SHARD_BYTES,
    *,
    bfloat16: str = "uint16",
) -> Iterator[tuple[str, ParamInfo]]:
    """Streams (name, array) pairs to ``params/NNNNN.safetensors`` below ``folder``; holds one tensor at a time.

    Yields each name with where it went. bfloat16 arrays (ml_dtypes) are stored as such and described as ``bfloat16``
    says, the type compiled functions take them as.

    Raises:
        ValueError: a name given twice, or a type safetensors or DLPack does not have.
        OSError: the disk is full or the like.
    """
    (folder / "params").mkdir(exist_ok=True)
    seen: set[str] = set()
    shard: _Shard | None = None
    number = 0
    try:
        for name, array in params:
            if name in seen or name.startswith(("_pad.", "__metadata__")):
                raise ValueError(f"parameter name {name!r} is taken")
            if array.dtype.name not in _CODES or array.dtype.byteorder == ">":
                raise ValueError(f"parameter {name!r} has type {array.dtype}, which an artifact cannot hold")
            seen.add(name)
            full = shard is not None and shard.data_bytes > 0 and shard.data_bytes + array.nbytes > shard_bytes
            if shard is not None and (full or not shard.has_room(name)):
                shard.close()
                shard = None
            if shard is None:
                number += 1
                shard = _Shard(folder / _file_name(number))
            # ascontiguousarray makes a scalar one-dimensional; the header keeps the shape as given.
            shard.append(name, np.ascontiguousarray(array).reshape(array.shape))
            dtype = bfloat16 if array.dtype == _BFLOAT16 else array.dtype.name
            yield name, ParamInfo(_file_name(number), tuple(array.shape), dtype)
        if shard is not None:
            shard.close()
            shard = None
    finally:
        if shard is not None:
            shard.abandon()


def _file_name(number: int) -> str:
    return f"params/{number:05d}.safetensors"


def read_params(folder: Path, params: dict[str, ParamInfo], prefault: bool) -> dict[str, NDArray[Any]]:
    """Memory-mapped arrays, 64-byte aligned, by name, each with the manifest's shape and type.

    They are writable only because DLPack from numpy takes no others: the pages are private copies-on-write, so a
    write would never reach the file. ``prefault`` maps the pages now rather than at first use.

    Raises:
        ArtifactError: a file is no safetensors file, or disagrees with the manifest.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for file in dict.fromkeys(info.file for info in params.values()):
        path = folder / file
        data = _map(path, prefault)
        header, start = _read_header(path, data)
        for name, info in params.items():
            if info.file == file:
                arrays[name] = _view(data, start, header, name, info, path)
    return arrays


def param_places(folder: Path, params: Mapping[str, ParamInfo]) -> dict[str, tuple[str, int]]:
    """The file that holds each parameter, and the byte of it that it starts at.

    Raises:
        ArtifactError: a file is no safetensors file.
    """
    headers = {}
    for file in dict.fromkeys(info.file for info in params.values()):
        headers[file] = _read_header(folder / file, _map(folder / file, prefault=False))
    places = {}
    for name, info in params.items():
        header, start = headers[info.file]
        places[name] = (info.file, start + int(header[name]["data_offsets"][0]))
    return places


def _map(path: Path, prefault: bool) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ArtifactError(f"{path}: is empty; compile again")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
    if prefault:
        try:
            mapped.madvise(_MADV_POPULATE_READ)
        except OSError:  # an older kernel; the pages then come one by one
            mapped.madvise(mmap.MADV_WILLNEED)
    return np.frombuffer(mapped, dtype=np.uint8)


def _read_header(path: Path, data: NDArray[np.uint8]) -> tuple[dict[str, Any], int]:
    size = int.from_bytes(data[:8].tobytes(), "little")
    try:
        header = json.loads(data[8 : 8 + size].tobytes()) if 8 + size <= data.size else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise ArtifactError(f"{path}: not a safetensors file; damaged, compile again")
    return header, 8 + size


def _view(
    data: NDArray[np.uint8], start: int, header: dict[str, Any], name: str, info: ParamInfo, path: Path
) -> NDArray[Any]:
    entry = header.get(name)
    if not isinstance(entry, dict):
        raise ArtifactError(f"{path}: has no tensor {name}, which the manifest promises; damaged, compile again")
    codes = {_CODES[info.dtype], "BF16"} if info.dtype == "uint16" else {_CODES[info.dtype]}
    dtype = np.dtype(info.dtype)
    length = int(np.prod(info.shape, dtype=np.int64)) * dtype.itemsize
    match entry:
        case {"dtype": code, "shape": shape, "data_offsets": [int(begin), int(end)]}:
            agrees = code in codes and shape == list(info.shape) and 0 <= begin == end - length
        case _:
            agrees = False
    if not agrees:
        raise ArtifactError(
            f"{path}: tensor {name} is not the {info.dtype} {list(info.shape)} of the manifest; damaged, compile again"
        )
    if start + end > data.size:
        raise ArtifactError(f"{path}: cut short inside tensor {name}; compile again")
    raw = data[start + begin : start + end]
    if raw.ctypes.data % ALIGNMENT:  # a file of another writer
        copy = aligned_zeros((length,), "uint8")
        copy[:] = raw
        raw = copy
    return raw.view(dtype).reshape(info.shape)


def aligned_zeros(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """A zeroed array whose first byte lies on a 64-byte boundary, as compiled code requires."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    buffer = np.zeros(size + ALIGNMENT, np.uint8)
    offset = -buffer.ctypes.data % ALIGNMENT
    return buffer[offset : offset + size].view(kind).reshape(shape)
