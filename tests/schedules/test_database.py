import json
import math
import os
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from dspark_compiler.errors import InputError
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule
from dspark_compiler.schedules.cuda.tile_schedule import TileSchedule
from dspark_compiler.schedules.database import Records, SearchRecord, user_folder
from dspark_compiler.schedules.linear_schedule import LinearSchedule, LinearWorkload

WORK = LinearWorkload(8, 960, 576, "uint16")
DEFAULT, OTHER = LinearSchedule(8), LinearSchedule(4, 2, 32)
FOUND = SearchRecord("00ff", "fused_add", [[], []], 1.5, 8)


def records(folder: Path, *shipped: Path, arch: str = "znver4") -> Records:
    return Records(arch, shipped, folder)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = records(tmp_path)
    written.add(WORK, DEFAULT, 10.0)
    written.add(WORK, OTHER, 7.5)
    written.add_search(FOUND)
    for read in (written, records(tmp_path)):
        assert read.measured(WORK) == {DEFAULT: 10.0, OTHER: 7.5}
        assert read.searched("00ff") == FOUND
        assert read.searched("other") is None


def test_architectures_and_workloads_stay_apart(tmp_path: Path) -> None:
    records(tmp_path).add(WORK, DEFAULT, 10.0)
    assert records(tmp_path, arch="x86-64-v3").measured(WORK) == {}
    assert records(tmp_path).measured(LinearWorkload(8, 960, 576, "float32")) == {}


def test_later_lines_and_the_users_folder_hold(tmp_path: Path) -> None:
    shipped, user = tmp_path / "shipped", tmp_path / "user"
    records(shipped).add(WORK, DEFAULT, 10.0)
    records(shipped).add(WORK, OTHER, 9.0)
    records(user).add(WORK, DEFAULT, 8.0)
    records(user).add(WORK, DEFAULT, 5.0)
    assert records(user, shipped).measured(WORK) == {DEFAULT: 5.0, OTHER: 9.0}


def test_what_does_not_work_is_remembered(tmp_path: Path) -> None:
    records(tmp_path).add(WORK, OTHER, math.inf)
    assert "Infinity" not in (tmp_path / "znver4" / "templates.jsonl").read_text()
    assert records(tmp_path).measured(WORK) == {OTHER: math.inf}


def test_schedules_of_all_templates_are_kept(tmp_path: Path) -> None:
    for schedule in (StreamSchedule(1, 16, 2), TileSchedule(128, 256, 4)):
        records(tmp_path).add(WORK, schedule, 2.0)
    assert records(tmp_path).measured(WORK) == {StreamSchedule(1, 16, 2): 2.0, TileSchedule(128, 256, 4): 2.0}


def test_rows_of_one_weight_are_found(tmp_path: Path) -> None:
    kept = records(tmp_path)
    for work in (replace(WORK, rows=16), WORK, replace(WORK, depth=8), replace(WORK, gated=True)):
        kept.add(work, DEFAULT, 1.0)
    assert kept.rows(replace(WORK, rows=3)) == [WORK, replace(WORK, rows=16)]


def test_runs_at_the_same_time_lose_no_line(tmp_path: Path) -> None:
    def run(rows: int) -> None:
        mine = records(tmp_path)
        for depth in range(1, 51):
            mine.add(LinearWorkload(rows, 8, depth), DEFAULT, float(depth))

    threads = [Thread(target=run, args=(rows,)) for rows in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = records(tmp_path)
    assert all(read.measured(LinearWorkload(r, 8, d)) == {DEFAULT: float(d)} for r in range(1, 5) for d in range(1, 51))


def test_export_keeps_what_a_model_uses(tmp_path: Path) -> None:
    source = records(tmp_path / "source")
    source.add(WORK, DEFAULT, 10.0)
    source.add(replace(WORK, rows=1), DEFAULT, 5.0)
    source.add(LinearWorkload(1, 2, 3), DEFAULT, 1.0)
    source.add_search(FOUND)
    source.add_search(SearchRecord("unused", "fused_mul", None, 2.0, 8))
    source.export(tmp_path / "tuning", [WORK, LinearWorkload(9, 9, 9)], ["00ff", "unknown"])
    exported = records(tmp_path / "tuning")
    assert exported.measured(WORK) == {DEFAULT: 10.0}
    # Other rows of the same weight have a say in how it is summed.
    assert exported.measured(replace(WORK, rows=1)) == {DEFAULT: 5.0}
    assert exported.measured(LinearWorkload(1, 2, 3)) == {}
    assert exported.searched("00ff") == FOUND
    assert exported.searched("unused") is None


@pytest.mark.parametrize("name", ["templates.jsonl", "searched.jsonl"])
@pytest.mark.parametrize(
    "line", ["not json", "[1]", "{}", '{"format":1}', '{"format":1,"template":"linear","schedule":{"rows":0}}']
)
def test_a_broken_line_is_named(tmp_path: Path, name: str, line: str) -> None:
    kept = records(tmp_path)
    kept.add(WORK, DEFAULT, 10.0)
    kept.add_search(FOUND)
    path = tmp_path / "znver4" / name
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=rf"{name}:2: not a tuning record .*delete the line"):
        (records(tmp_path).measured(WORK), records(tmp_path).searched("00ff"))


def test_lines_of_another_format_are_skipped_with_a_warning(tmp_path: Path) -> None:
    records(tmp_path).add(WORK, DEFAULT, 10.0)
    path = tmp_path / "znver4" / "templates.jsonl"
    path.write_text(json.dumps({"format": 99, "anything": 1}) + "\n" + path.read_text())
    with pytest.warns(UserWarning, match=r"templates.jsonl:1: record format 99"):
        assert records(tmp_path).measured(WORK) == {DEFAULT: 10.0}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match=r"cannot be (written|read).*(DSPARK_RECORDS|delete)"):
        records(blocked).add(WORK, DEFAULT, 1.0)


def test_the_users_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DSPARK_RECORDS", str(tmp_path))
    assert user_folder() == tmp_path
    monkeypatch.delenv("DSPARK_RECORDS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_folder() == tmp_path / "dspark-compile" / "records"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_folder() == Path(os.path.expanduser("~/.cache/dspark-compile/records"))
