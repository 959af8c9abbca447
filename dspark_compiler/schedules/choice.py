"""Which schedule a packed product gets: the fastest on record that leaves all rows of its weight with the same bits."""

import math
import warnings
from collections.abc import Hashable

from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.linear_space import LinearSpace, Schedule

# Anything less is noise; the default, which is right for most shapes, then stays.
_CLEARLY_FASTER = 0.97

_Times = dict[Schedule, float]


def choose_schedule(work: LinearWorkload, linears: LinearSpace, records: Records | None) -> Schedule:
    """The schedule on record for a workload; the default unless another is clearly faster.

    A record of a schedule that this version's kernels do not have is left out, with a warning.

    Args:
        work: what is to be computed.
        linears: the target's products.
        records: what was measured, or None for the default.

    Raises:
        InputError: a file of records that cannot be read.
    """
    default, *_ = linears.candidates(work)
    if records is None:
        return default
    key = linears.key(work)
    # Few and many rows may have kernels of different kinds, which have nothing to do with each other.
    alike = [known for known in records.rows(key) if isinstance(linears.candidates(known)[0], type(default))]
    measured = {known.rows: _fitting(known, linears, records) for known in alike}
    usual = linears.order(default)
    order = _order(measured, usual, linears)
    usable = {rows: times for rows, times in measured.items() if times}
    if order == usual and key.rows not in usable:
        return default
    # Rows that were never measured go by the nearest that were.
    nearest = min(usable, key=lambda rows: (abs(math.log(rows / key.rows)), rows))
    times = {cut: time for cut, time in usable[nearest].items() if linears.order(cut) == order}
    best = min(times, key=times.__getitem__)
    stays = default in times and not times[best] < _CLEARLY_FASTER * times[default]
    return default if stays else best


def _fitting(work: LinearWorkload, linears: LinearSpace, records: Records) -> _Times:
    candidates = linears.candidates(work)
    times = {cut: time for cut, time in records.measured(work).items() if math.isfinite(time)}
    for cut in [cut for cut in times if cut not in candidates]:
        warnings.warn(f"tuning record {cut} does not fit {work}; skipped", stacklevel=2)
        del times[cut]
    # Times say something beside the default's only.
    return times if candidates[0] in times else {}


def _order(measured: dict[int, _Times], usual: Hashable, linears: LinearSpace) -> Hashable:
    """The order of sums for all rows: the usual one unless another is clearly faster in all that is on record."""
    orders = {linears.order(cut) for times in measured.values() for cut in times} | {usual}
    costs = {order: sum(_cost(rows, times, order, linears) for rows, times in measured.items()) for order in orders}
    best = min(orders, key=lambda order: (costs[order], order != usual))
    return best if costs[best] < _CLEARLY_FASTER * costs[usual] else usual


def _cost(rows: int, times: _Times, order: Hashable, linears: LinearSpace) -> float:
    """The least time of an order over the least of all, weighed: steps of one row are most of what a model does."""
    if not times:
        return 0.0
    own = [time for cut, time in times.items() if linears.order(cut) == order]
    return min(own, default=math.inf) / min(times.values()) / math.sqrt(rows)
