"""The records that come with the package: of schedules there are, for the models they are said to be for."""

import importlib.util
import math
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from dspark_compiler.schedules.choice import choose_schedule
from dspark_compiler.schedules.cuda.fragment_linears import FragmentLinears
from dspark_compiler.schedules.database import Records, shipped_folder
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.linear_space import Schedule

ARCH = "sm_90a"
LINEARS = FragmentLinears(ARCH)


@cache
def tune_shapes() -> ModuleType:
    """benchmarks/tune_shapes.py, which is no package."""
    path = Path(__file__).parents[2] / "benchmarks" / "tune_shapes.py"
    spec = importlib.util.spec_from_file_location("tune_shapes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(model: str) -> dict[LinearWorkload, dict[Schedule, float]]:
    """What is on record of each linear of a model that streams its weight."""
    records = Records(ARCH, [], shipped_folder())
    works = tune_shapes().workloads([tune_shapes().SHAPES[model]], rows=(1, 8, 16, 32))
    return {work: records.measured(work) for work in works}


@pytest.mark.parametrize("model", list(tune_shapes().SHAPES))
def test_every_linear_has_records_of_schedules_there_are(model: str) -> None:
    for work, times in measured(model).items():
        default, *others = LINEARS.candidates(work)
        assert math.isfinite(times[default])
        assert times.keys() <= {default, *others}
        assert len([time for time in times.values() if math.isfinite(time)]) > 1


@pytest.mark.parametrize("model", list(tune_shapes().SHAPES))
def test_rules_give_at_least_half_the_tuned_speed(model: str) -> None:
    for work, times in measured(model).items():
        assert min(times.values()) > 0.5 * times[LINEARS.candidates(work)[0]], work


def test_all_rows_of_a_weight_are_summed_alike() -> None:
    records = Records(ARCH, [], shipped_folder())
    for work in (LinearWorkload(1, 6144, 4096, "bfloat16"), LinearWorkload(1, 24576, 4096, "bfloat16", gated=True)):
        cuts = [
            choose_schedule(LinearWorkload(rows, work.features, work.depth, "bfloat16", work.gated), LINEARS, records)
            for rows in range(1, 33)
        ]
        assert len({LINEARS.order(cut) for cut in cuts}) == 1
