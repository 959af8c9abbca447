import inspect
import io
import math
import os
from pathlib import Path

import numpy as np
import pytest
import tvm

from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules import panel_linears, search
from dspark_compiler.schedules.apply import apply_schedules, export_records
from dspark_compiler.schedules.choice import choose_schedule
from dspark_compiler.schedules.database import Records, SearchRecord
from dspark_compiler.schedules.linear_schedule import LinearSchedule, LinearWorkload, default_schedule
from dspark_compiler.schedules.local_bench import LocalBench
from dspark_compiler.schedules.panel_linears import PanelLinears
from dspark_compiler.schedules.search import SearchJob, SearchWorker, function_key, searchable, trace_json
from dspark_compiler.schedules.tune import Generated, TuningStep, tune
from tests.schedules.kernels import MACHINES, WIDEST, build, normal
from tests.schedules.modules import lowered

TARGET = MACHINES[WIDEST]
WORK = LinearWorkload(4, 5 * WIDEST.panel, 96)


LINEARS, BENCH, GENERATED = PanelLinears(WIDEST), LocalBench(TARGET), Generated(TARGET, WIDEST)


def records(folder: Path) -> Records:
    return Records("here", [], folder)


def test_a_second_run_measures_nothing(tmp_path: Path) -> None:
    module = lowered(WORK)
    steps: list[TuningStep] = []
    before = inspect.getmodule
    assert tune(module, LINEARS, BENCH, records(tmp_path), trials=4, generated=GENERATED, progress=steps.append) == 4
    assert inspect.getmodule is before
    assert [(step.done, step.total) for step in steps][-1] == (4, 4)
    assert all(step.microseconds is not None and step.microseconds > 0 and step.seconds_left >= 0 for step in steps)
    kept = records(tmp_path)
    ((_, function),) = searchable(module)
    assert len(kept.measured(WORK)) >= 2
    found = kept.searched(function_key(function))
    assert found is not None
    assert found.trials + len(kept.measured(WORK)) == 4
    steps.clear()
    assert tune(module, LINEARS, BENCH, kept, trials=4, generated=GENERATED, progress=steps.append) == 0
    assert not steps
    export_records(module, kept, LINEARS, tmp_path / "tuning")
    assert records(tmp_path / "tuning").measured(WORK) == kept.measured(WORK)
    exported = records(tmp_path / "tuning")
    assert tune(module, LINEARS, BENCH, exported, trials=4, generated=GENERATED) == 0


def test_a_recorded_trace_comes_before_the_rules(tmp_path: Path) -> None:
    module = lowered()
    ((variable, function),) = searchable(module)
    schedule = tvm.s_tir.Schedule(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    for block in blocks[:-1]:
        schedule.compute_inline(block)
    outer, inner = schedule.get_loops(blocks[-1])
    _, vector = schedule.split(inner, schedule.sample_perfect_tile(inner, 2, 32))
    schedule.vectorize(vector)
    schedule.parallel(outer)
    kept = records(tmp_path)
    kept.add_search(SearchRecord(function_key(function), "silu", trace_json(schedule.trace), 1.0, 1))
    result = apply_schedules(module, TARGET, WIDEST, records(tmp_path))[variable]
    assert "T.parallel" in result.script()
    assert "T.parallel" not in apply_schedules(module, TARGET, WIDEST)[variable].script()
    x, y, out = normal(4, 96), normal(4, 96, seed=1), np.zeros((4, 96), np.float32)
    build(result)(x, y, out)
    np.testing.assert_allclose(out, x / (1 + np.exp(-x)) * y + x, rtol=1e-5, atol=1e-6)


def test_a_trace_that_does_not_fit_is_left_out_with_a_warning(tmp_path: Path) -> None:
    module = lowered()
    ((variable, function),) = searchable(module)
    kept = records(tmp_path)
    trace = [[["GetSBlock", [], ["absent", "main"], ["b0"]]], []]
    kept.add_search(SearchRecord(function_key(function), "silu", trace, 1.0, 1))
    with pytest.warns(UserWarning, match="does not fit silu"):
        result = apply_schedules(module, TARGET, WIDEST, kept)
    tvm.ir.assert_structural_equal(result[variable], apply_schedules(module, TARGET, WIDEST)[variable])


def test_keys_ignore_names_and_tell_shapes_apart() -> None:
    keys = [function_key(next(searchable(lowered(rows=rows)))[1]) for rows in (4, 4, 5)]
    assert keys[0] == keys[1] != keys[2]


def test_an_interrupted_run_keeps_what_it_measured(tmp_path: Path) -> None:
    module = lowered(WORK)

    def interrupt(_: TuningStep) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(module, LINEARS, BENCH, records(tmp_path), trials=2, progress=interrupt)
    assert len(records(tmp_path).measured(WORK)) >= 1


def test_a_search_that_dies_is_told_of_and_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SearchWorker, "search", lambda *_, **__: None)
    steps: list[TuningStep] = []
    with pytest.warns(UserWarning, match="tuning fused_silu_multiply_add: the search crashed"):
        tune(lowered(), LINEARS, BENCH, records(tmp_path), trials=1, generated=GENERATED, progress=steps.append)
    assert [step.microseconds for step in steps] == [None]
    assert not (tmp_path / "here").exists()


def test_a_worker_that_crashes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, function),) = searchable(lowered())
    job = SearchJob(function, function, TARGET)
    with SearchWorker() as worker:
        monkeypatch.setattr(search, "run_search", lambda *_: os.abort())
        assert worker.search(job, 1, 0) is None


@pytest.mark.parametrize("wrong", ["default", "others"])
def test_a_wrong_schedule_is_not_trusted(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, default = panel_linears.packed_linear, default_schedule(WORK, WIDEST)

    def sometimes_wrong(name: str, work: LinearWorkload, isa: object, schedule: LinearSchedule) -> tvm.tirx.PrimFunc:
        if (schedule == default) == (wrong == "others"):
            return right(name, work, WIDEST, schedule)
        return right(name, work, WIDEST, schedule, epilogue=lambda value, *_: value + 1)

    monkeypatch.setattr(panel_linears, "packed_linear", sometimes_wrong)
    if wrong == "default":
        with pytest.raises(LoweringError, match=r"linear 4x96 to .* default schedule gives a wrong product"):
            tune(lowered(WORK), LINEARS, BENCH, records(tmp_path), trials=3)
        assert records(tmp_path).measured(WORK) == {}
        return
    with pytest.warns(UserWarning, match=r"tuning linear 4x96 to .*LinearSchedule.* rounds differently; left out"):
        tune(lowered(WORK), LINEARS, BENCH, records(tmp_path), trials=3)
    kept = records(tmp_path)
    assert len(kept.measured(WORK)) == 3
    assert [cut for cut, time in kept.measured(WORK).items() if math.isfinite(time)] == [default]
    assert choose_schedule(WORK, LINEARS, kept) == default


def test_lines_are_plain_text(tmp_path: Path) -> None:
    records(tmp_path).add(WORK, LinearSchedule(4), 1.0)
    assert io.StringIO((tmp_path / "here" / "templates.jsonl").read_text()).readline().startswith('{"format":1,')
