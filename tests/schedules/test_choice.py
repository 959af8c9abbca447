"""Which schedule the records give: never one that parts the rows of a weight, never one the kernels do not have."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from dspark_compiler.schedules.choice import choose_schedule
from dspark_compiler.schedules.cuda.fragment_linears import FragmentLinears
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule
from dspark_compiler.schedules.cuda.tile_schedule import TileSchedule
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.linear_space import Schedule

LINEARS = FragmentLinears("sm_90a")
ONE = LinearWorkload(1, 6144, 4096, "bfloat16")
DEFAULT = LINEARS.candidates(ONE)[0]
WIDE, WIDE_FAR, NARROW = StreamSchedule(1, 16, 4), StreamSchedule(1, 16, 2), StreamSchedule(1, 8, 4)


def records(folder: Path, times: dict[int, dict[Schedule, float]]) -> Records:
    kept = Records("sm_90a", [], folder)
    for rows, measured in times.items():
        for schedule, time in measured.items():
            kept.add(replace(ONE, rows=rows), schedule, time)
    return kept


def choose(rows: int, kept: Records) -> Schedule:
    return choose_schedule(replace(ONE, rows=rows), LINEARS, kept)


def test_nothing_on_record_is_the_default(tmp_path: Path) -> None:
    assert choose_schedule(ONE, LINEARS, None) == DEFAULT == WIDE
    assert choose(1, records(tmp_path, {})) == DEFAULT
    assert choose(1, records(tmp_path, {1: {NARROW: 1.0}})) == DEFAULT  # beside which it would say something


@pytest.mark.parametrize(("time", "chosen"), [(5.0, WIDE_FAR), (9.9, WIDE), (20.0, WIDE), (math.inf, WIDE)])
def test_only_a_clear_winner_replaces_the_default(tmp_path: Path, time: float, chosen: StreamSchedule) -> None:
    assert choose(1, records(tmp_path, {1: {WIDE: 10.0, WIDE_FAR: time}})) == chosen


def test_all_rows_of_a_weight_are_summed_in_one_order(tmp_path: Path) -> None:
    times: dict[int, dict[Schedule, float]] = {1: {WIDE: 10.0, NARROW: 8.0}, 8: {WIDE: 10.0, NARROW: 11.0}}
    kept = records(tmp_path / "narrow", times)
    assert [choose(rows, kept) for rows in (1, 4, 8, 32)] == [NARROW] * 4
    times = {1: {WIDE: 10.0, NARROW: 9.5}, 8: {WIDE: 10.0, WIDE_FAR: 7.0, NARROW: 13.0}}
    kept = records(tmp_path / "wide", times)
    many = LINEARS.candidates(replace(ONE, rows=32))[0]  # what rules say, which sum in the same order
    assert LINEARS.order(many) == LINEARS.order(WIDE)
    assert [choose(rows, kept) for rows in (1, 4, 8, 32)] == [WIDE, WIDE, WIDE_FAR, many]


def test_an_order_that_some_rows_lack_is_not_taken(tmp_path: Path) -> None:
    kept = records(tmp_path, {1: {WIDE: 10.0, NARROW: 5.0}, 8: {WIDE: 10.0}})
    assert [choose(rows, kept) for rows in (1, 8)] == [WIDE, WIDE]


def test_few_and_many_rows_are_apart(tmp_path: Path) -> None:
    many = replace(ONE, rows=512)
    first, second, *_ = LINEARS.candidates(many)
    kept = records(tmp_path, {1: {WIDE: 10.0, NARROW: 5.0}, 512: {first: 10.0, second: 5.0}})
    assert choose(1, kept) == NARROW
    assert choose(512, kept) == second
    assert isinstance(choose(2048, kept), TileSchedule)


def test_records_of_kernels_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    kept = records(tmp_path, {1: {WIDE: 10.0, StreamSchedule(7, 7, 7): 1.0, WIDE_FAR: 9.0}})
    with pytest.warns(UserWarning, match=r"tuning record StreamSchedule\(stripes=7.* does not fit .*rows=1.*; skipped"):
        assert choose(1, kept) == WIDE_FAR


def test_weights_of_two_bytes_share_records(tmp_path: Path) -> None:
    kept = records(tmp_path, {1: {WIDE: 10.0, WIDE_FAR: 5.0}})
    assert choose_schedule(replace(ONE, weight_dtype="float16"), LINEARS, kept) == WIDE_FAR
    assert choose_schedule(replace(ONE, weight_dtype="int8"), LINEARS, kept) != WIDE_FAR
