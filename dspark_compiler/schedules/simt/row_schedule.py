"""What can be chosen about a packed product of rows, the choice without a record, and what is worth measuring."""

from dataclasses import dataclass

from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.threads import TEAM
from dspark_compiler.schedules.simt.weights import WeightForm

FEW_ROWS = 16  # up to so many rows a product streams its weight
MOST_SPLITS = 16  # teams of a work group

_BUSY = 1 << 18  # threads that keep a large device's memory busy
_FEWEST_STEPS = 2  # accesses a thread makes along a row at least


@dataclass(frozen=True)
class RowSchedule:
    """Teams that share a row of a weight, a power of two up to a work group; 0: tiles, which nothing shares."""

    splits: int


def candidate_schedules(work: LinearWorkload) -> list[RowSchedule]:
    """What is worth measuring, the default first."""
    if work.rows > FEW_ROWS:
        return [RowSchedule(0)]
    default, most = _default_splits(work), _most_splits(work)
    every = [1 << i for i in range(most.bit_length())]
    return [RowSchedule(default), *(RowSchedule(splits) for splits in every if splits != default)]


def _default_splits(work: LinearWorkload) -> int:
    """As many as keep a device busy, whatever the rows of x, so that no row's sums depend on their number."""
    splits, most = 1, _most_splits(work)
    while splits < most and work.features * TEAM * splits < _BUSY:
        splits *= 2
    return splits


def _most_splits(work: LinearWorkload) -> int:
    accesses = WeightForm(work.features, work.depth, work.weight_dtype).accesses
    splits = 1
    while splits < MOST_SPLITS and accesses >= 2 * splits * TEAM * _FEWEST_STEPS:
        splits *= 2
    return splits
