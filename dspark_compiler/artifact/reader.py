"""Opens an artifact, after making sure that it is whole, ours and for this machine."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dspark_compiler.artifact.files import digests
from dspark_compiler.artifact.host import check_host
from dspark_compiler.artifact.manifest import MANIFEST, Manifest
from dspark_compiler.artifact.tensors import read_params
from dspark_compiler.errors import ArtifactError
from dspark_compiler.replace import is_partial


@dataclass(frozen=True)
class Artifact:
    """A compiled model on disk, and the number of the device it is to run on."""

    path: Path
    manifest: Manifest
    device: int = 0

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, verify: bool = True, runnable: bool = True, device: int = 0
    ) -> "Artifact":
        """Reads and checks an artifact.

        ``verify`` compares every file's SHA-256; sizes are compared always. ``runnable`` asks that ``device``, by
        number, can run it, which looking at it does not need.

        Raises:
            ArtifactError: missing, unfinished, edited, cut short, of a newer format, or for another machine.
            InputError: there is no such device.
        """
        folder = Path(path)
        if is_partial(folder):
            raise ArtifactError(f"{folder}: is what an unfinished compile left; compile again")
        if not folder.is_dir():
            raise ArtifactError(f"{folder}: no such artifact; dspark-compile MODEL writes one")
        try:
            text = (folder / MANIFEST).read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"{folder}: not an artifact, its {MANIFEST} cannot be read ({error.strerror}); compile the model again"
            ) from None
        artifact = cls(folder, Manifest.loads(text, str(folder / MANIFEST)), device)
        artifact._check_files()
        if runnable:
            check_host(artifact.manifest.target, str(folder), device)
        if verify:
            artifact._check_digests()
        return artifact

    def params(self, *, prefault: bool = False) -> dict[str, NDArray[Any]]:
        """The weights, memory-mapped, by name: 64-byte aligned, of the manifest's shapes and types.

        ``prefault`` maps their pages now. Writing to one never reaches the file.

        Raises:
            ArtifactError: a file disagrees with the manifest.
        """
        return read_params(self.path, dict(self.manifest.params), prefault)

    def has(self, name: str) -> bool:
        """Whether the artifact holds a file of this relative path."""
        return name in self.manifest.files

    def read_text(self, name: str) -> str | None:
        """The text of a file, None if the artifact holds none of this relative path."""
        data = self.read_bytes(name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{self.path / name}: cannot be read ({error}); compile again") from None

    def read_bytes(self, name: str) -> bytes | None:
        """The content of a file, None if the artifact holds none of this relative path."""
        if not self.has(name):
            return None
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise ArtifactError(f"{self.path / name}: cannot be read ({error}); compile again") from None

    def size(self) -> int:
        """Bytes of all files, without the manifest."""
        return sum(info.size for info in self.manifest.files.values())

    def _check_files(self) -> None:
        root = os.path.realpath(self.path)
        for name, info in self.manifest.files.items():
            path = self.path / name
            if not path.is_file():
                raise ArtifactError(f"{path}: missing; the artifact is incomplete, copy it again or compile again")
            if not os.path.realpath(path).startswith(root + os.sep):
                raise ArtifactError(f"{path}: leads out of the artifact; a file of it must lie inside")
            size = path.stat().st_size
            if size != info.size:
                how = "cut short" if size < info.size else "too long"
                raise ArtifactError(
                    f"{path}: {how}, {size} bytes where the manifest says {info.size}; copy it again or compile again"
                )

    def _check_digests(self) -> None:
        paths = [self.path / name for name in self.manifest.files]
        try:
            sums = digests(paths)
        except OSError as error:
            raise ArtifactError(f"{error.filename}: cannot be read ({error.strerror})") from None
        for path, checksum, info in zip(paths, sums, self.manifest.files.values(), strict=True):
            if checksum != info.sha256:
                raise ArtifactError(
                    f"{path}: was changed since it was written (wrong SHA-256); copy it again or compile again, "
                    "or use --no-verify if the change is yours"
                )
