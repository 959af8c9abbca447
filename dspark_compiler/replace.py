"""Puts a finished folder in the place of another one in a single step, and clears what killed writers left."""

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h

# A file system or kernel without the exchange answers one of these.
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


def _partial_prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def is_partial(path: Path) -> bool:
    """Whether a folder is one a writer works in (or was killed in), whatever it holds."""
    return path.name.startswith(".") and ".partial-" in path.name


def make_partial(target: Path) -> tuple[Path, int]:
    """A new folder beside ``target``, and a descriptor whose lock says that its writer lives (close it at the end)."""
    while True:
        partial = target.with_name(_partial_prefix(target) + secrets.token_hex(4))
        partial.mkdir(parents=True)
        # Another writer's clear_stale may come between mkdir and flock; then a new name is tried.
        with suppress(FileNotFoundError):
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            if _lock(descriptor):
                return partial, descriptor
            os.close(descriptor)


def clear_stale(target: Path) -> None:
    """Removes the folders killed writers of ``target`` left, and restores a predecessor caught between two renames."""
    previous = _previous(target)
    if previous.exists() and not target.exists():
        previous.rename(target)
    shutil.rmtree(previous, ignore_errors=True)
    for entry in target.parent.glob(_partial_prefix(_escaped(target)) + "*"):
        with suppress(FileNotFoundError):
            descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if _lock(descriptor):
                    shutil.rmtree(entry, ignore_errors=True)
            finally:
                os.close(descriptor)


def _escaped(target: Path) -> Path:
    return target.with_name("".join(f"[{c}]" if c in "*?[" else c for c in target.name))


def _lock(descriptor: int) -> bool:
    """Takes the folder's lock, which the kernel drops when its process dies; False if another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def put_in_place(partial: Path, target: Path) -> None:
    """Makes ``partial`` the folder ``target``; at any moment ``target`` is the old one whole or the new one whole.

    Where the file system has no exchange there is an instant with neither, which ``clear_stale`` mends.

    Raises:
        OSError: the renaming failed; ``target`` is as it was.
    """
    if not target.exists():
        partial.rename(target)
    elif exchange(partial, target):
        shutil.rmtree(partial, ignore_errors=True)  # now the old one
    else:
        previous = _previous(target)
        target.rename(previous)
        try:
            partial.rename(target)
        except OSError:
            previous.rename(target)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    sync_folder(target.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swaps two folders atomically (renameat2); False where this system cannot.

    Raises:
        OSError: any other failure.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    done: bool = libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
    code = ctypes.get_errno()
    if not done and code not in _NO_EXCHANGE:
        raise OSError(code, os.strerror(code), str(other))
    return done


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
