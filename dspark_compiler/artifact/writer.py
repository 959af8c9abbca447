"""Writes an artifact so that its folder is, at any moment, the previous one whole or the new one whole."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from dspark_compiler import replace
from dspark_compiler.artifact.files import describe
from dspark_compiler.artifact.manifest import MANIFEST, FileInfo, Manifest, ParamInfo, TensorInfo
from dspark_compiler.artifact.reader import Artifact
from dspark_compiler.artifact.tensors import param_places, write_params
from dspark_compiler.errors import ArtifactError, InputError

_LEFT_OUT = "params/left-out.safetensors"


def check_destination(path: Path) -> None:
    """Refuses to write where something else than an artifact would be lost.

    Raises:
        InputError: ``path`` is a file, or a folder with something in it that is no artifact.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path}: is a file; name another folder with --output")
    if any(path.iterdir()) and not _is_artifact(path):
        raise InputError(f"{path}: is a folder but not an artifact; name another one with --output, or remove it")


def _is_artifact(path: Path) -> bool:
    try:
        data = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and {"format_version", "compiler_version"} <= data.keys()


class ArtifactWriter:
    """Collects an artifact in a folder beside ``output`` and puts it in place with ``finish``.

    Use as a context manager: leaving it without ``finish`` discards everything and keeps the previous artifact.
    Every method raises ArtifactError if the disk fails or is full.

    Raises:
        InputError: ``output`` is something else than an artifact.
    """

    def __init__(self, output: str | os.PathLike[str]) -> None:
        # A symbolic link to an artifact stays a link.
        self.output = Path(os.path.realpath(output))
        check_destination(self.output)
        self._params: dict[str, ParamInfo] = {}
        self._lock: int | None = None

    def __enter__(self) -> Self:
        with self._writing():
            self.output.parent.mkdir(parents=True, exist_ok=True)
            replace.clear_stale(self.output)
            self.folder, self._lock = replace.make_partial(self.output)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            shutil.rmtree(self.folder, ignore_errors=True)

    def add_params(self, params: Iterable[tuple[str, NDArray[Any]]], *, bfloat16: str = "uint16") -> None:
        """Streams weights to ``params/``; one is held in memory at a time.

        bfloat16 arrays (ml_dtypes) are stored as BF16 and stand in the manifest as ``bfloat16`` says: as the type
        that compiled functions take them as. Call it once.

        Raises:
            ValueError: a name given twice, or a type an artifact cannot hold.
        """
        with self._writing():
            self._params.update(write_params(self.folder, params, bfloat16=bfloat16))

    def param_places(self) -> dict[str, tuple[str, int]]:
        """Where the weights added so far lie: the file inside the artifact, and the byte each starts at."""
        return param_places(self.folder, self._params)

    def leave_out_params(self, params: Mapping[str, TensorInfo]) -> None:
        """Names weights that the artifact does not hold: whoever runs it gives its device others.

        For measuring models whose weights are not at hand, or too large to be moved.
        """
        self.add_bytes(_LEFT_OUT, b"")
        self._params.update((name, ParamInfo(_LEFT_OUT, info.shape, info.dtype)) for name, info in params.items())

    def add_file(self, source: str | os.PathLike[str], path: str) -> None:
        """Copies a file (its content, following links) to ``path`` inside the artifact."""
        with self._writing():
            shutil.copyfile(source, self._destination(path))

    def add_bytes(self, path: str, data: bytes | str) -> None:
        """Writes a file of the given content; text as UTF-8."""
        with self._writing():
            self._destination(path).write_bytes(data.encode() if isinstance(data, str) else data)

    def add_json(self, path: str, data: object) -> None:
        """Writes JSON data to a file, such as ``report.json``."""
        self.add_bytes(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")

    def preview(self, manifest: Manifest) -> Artifact:
        """The artifact as it would be with what was added so far, to be run before it takes the previous one's place.

        It is gone when the writer is left, and its files' checksums are not computed yet.
        """
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        files = {path.relative_to(self.folder).as_posix(): FileInfo(path.stat().st_size, "") for path in paths}
        return Artifact(self.folder, dataclasses.replace(manifest, params=self._params, files=files))

    def finish(self, manifest: Manifest) -> Path:
        """Writes the manifest, with ``params`` and ``files`` filled in, and puts the artifact in place.

        Returns the artifact's path.

        Raises:
            ArtifactError: the manifest contradicts itself or what was added.
        """
        with self._writing():
            manifest = dataclasses.replace(manifest, params=self._params, files=describe(self.folder))
            manifest.validate()
            (self.folder / MANIFEST).write_text(manifest.dumps(), encoding="utf-8")
            _sync_tree(self.folder)
            replace.put_in_place(self.folder, self.output)
        return self.output

    def _destination(self, path: str) -> Path:
        destination = self.folder / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        return destination

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise ArtifactError(
                f"{error.filename or self.output}: {reason}, while writing {self.output}; nothing was changed there"
            ) from error


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            replace.sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    replace.sync_folder(folder)
