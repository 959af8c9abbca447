"""Writing is all or nothing: killed, out of space or failing, the old artifact stays and nothing looks complete."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dspark_compiler import replace
from dspark_compiler.artifact import Artifact, ArtifactWriter, check_destination
from dspark_compiler.errors import ArtifactError, InputError
from tests.test_artifact import manifest, write


def seed_of(path: Path) -> float:
    return float(Artifact.open(path).params()["w"][0])


def leftovers(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir() if entry != path]


def test_a_new_artifact_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dspark", 1)
    old = Artifact.open(path).params()["w"]
    write(path, 2)
    assert seed_of(path) == 2
    assert leftovers(path) == []
    assert (old == 1).all()  # whoever has it mapped keeps it


def test_parents_are_made(tmp_path: Path) -> None:
    assert seed_of(write(tmp_path / "x" / "y" / "a.dspark", 3)) == 3


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert seed_of(write(tmp_path / "a", 3)) == 3


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", 1)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", 2)
    assert (tmp_path / "link").is_symlink()
    assert seed_of(tmp_path / "real") == 2


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_text('{"name": "a web page"}')
    for refused in (ArtifactWriter, check_destination):
        with pytest.raises(InputError, match="not an artifact; name another one with --output"):
            refused(tmp_path / "d")
    assert [entry.name for entry in (tmp_path / "d").iterdir()] == [name]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        ArtifactWriter(tmp_path / "f")


def test_an_error_or_no_finish_discards(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dspark", 1)
    with ArtifactWriter(path) as writer:
        writer.add_bytes("x", b"y")
    with pytest.raises(RuntimeError, match="boom"), ArtifactWriter(path) as writer:
        raise RuntimeError("boom")
    assert seed_of(path) == 1
    assert leftovers(path) == []


def test_a_manifest_that_contradicts_what_was_added_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"entry_points\.prefill_4: parameter w is not in params"),
        ArtifactWriter(tmp_path / "a") as writer,
    ):
        writer.finish(manifest())
    assert list(tmp_path.iterdir()) == []


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.dspark"
    with ArtifactWriter(path) as first:
        first.add_params([("w", np.full(3, 1, np.float32)), ("v", np.zeros(3, np.float32))])
        write(path, 2)
        assert first.folder.is_dir()
        first.finish(manifest())
    assert seed_of(path) == 1
    assert leftovers(path) == []


def test_what_an_unfinished_write_left_is_no_artifact_and_goes_with_the_next(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dspark", 1)
    partial, descriptor = replace.make_partial(path)
    os.close(descriptor)  # as if its process had died
    partial.rmdir()
    Path(path).rename(partial)  # killed at the last moment: all there but its name
    with pytest.raises(ArtifactError, match="unfinished"):
        Artifact.open(partial)
    write(path, 2)
    assert leftovers(path) == []


def test_other_artifacts_leftovers_are_not_touched(tmp_path: Path) -> None:
    other, descriptor = replace.make_partial(tmp_path / "b[1].dspark")
    os.close(descriptor)
    write(tmp_path / "b1.dspark")
    write(tmp_path / "b.dspark")
    assert other.exists()
    write(tmp_path / "b[1].dspark")
    assert not other.exists()


def test_without_an_exchange_the_old_one_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replace, "exchange", lambda one, other: False)
    path = write(tmp_path / "a.dspark", 1)
    write(path, 2)
    assert seed_of(path) == 2
    assert leftovers(path) == []


def test_without_an_exchange_a_kill_between_the_renames_is_mended(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dspark", 1)
    path.rename(replace._previous(path))
    with ArtifactWriter(path):
        assert seed_of(path) == 1
    assert seed_of(path) == 1


def test_without_an_exchange_a_failed_rename_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replace, "exchange", lambda one, other: False)
    path = write(tmp_path / "a.dspark", 1)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if replace.is_partial(self):
            raise OSError(errno.EIO, "Input/output error", str(self))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ArtifactError, match="Input/output error, while writing"):
        write(path, 2)
    assert seed_of(path) == 1


def test_exchange(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert replace.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists()
    with pytest.raises(FileNotFoundError):
        replace.exchange(tmp_path / "a", tmp_path / "none")


def test_a_missing_source_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="none: No such file"), ArtifactWriter(tmp_path / "a") as writer:
        writer.add_file(tmp_path / "none", "lib/none")


@pytest.mark.parametrize("limit", [1 << 12, 1 << 17, 3 << 20])
def test_a_file_that_cannot_grow_keeps_the_old_artifact(tmp_path: Path, limit: int) -> None:
    path = write(tmp_path / "a.dspark", 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(ArtifactError, match=r"File too large, while writing .*nothing was changed"):
            write(path, 2, size=1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert seed_of(path) == 1
    assert leftovers(path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("size", [300_000, 600_000, 2_000_000])
def test_a_full_disk_keeps_the_old_artifact(small_disk: Path, size: int) -> None:
    path = write(small_disk / "a.dspark", 1, size=100_000)
    with pytest.raises(ArtifactError, match=r"No space left on device, while writing .*nothing was changed"):
        write(path, 2, size=size)
    assert seed_of(path) == 1
    assert leftovers(path) == []
    write(path, 3, size=1000)
    assert seed_of(path) == 3


WRITE_FOREVER = """
import sys
from pathlib import Path
from tests.test_artifact import write
seed = 1
while True:
    seed += 1
    write(Path(sys.argv[1]), seed, size=20_000)
    print(seed, flush=True)
"""


def test_a_kill_at_any_moment_leaves_one_whole_artifact(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dspark", 1)
    randomness = random.Random(3)
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE_FOREVER, path],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(randomness.random() * 0.05)
            process.kill()
            finished = [2, *map(int, process.stdout.read().split())]
        seed = seed_of(path)
        # The last one may have been put in place without having been announced.
        assert finished[-1] <= seed <= finished[-1] + 1
        for name in leftovers(path):
            with pytest.raises(ArtifactError):
                Artifact.open(tmp_path / name)
    write(path, 99)
    assert leftovers(path) == []
