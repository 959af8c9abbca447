"""Sizes and SHA-256 sums of an artifact's files, several at a time."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dspark_compiler.artifact.manifest import MANIFEST, FileInfo


def digest(path: Path) -> str:
    """SHA-256 of a file, in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of each file; hashing releases the interpreter lock, so threads use all cores."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(digest, paths))


def describe(folder: Path) -> dict[str, FileInfo]:
    """Every file below ``folder`` but the manifest, by its path relative to it, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {
        path.relative_to(folder).as_posix(): FileInfo(path.stat().st_size, checksum)
        for path, checksum in zip(paths, digests(paths), strict=True)
    }
