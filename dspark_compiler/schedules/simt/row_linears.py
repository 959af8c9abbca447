"""Packed products as lowering and tuning see them: streams for few rows, tiles for many."""

from collections.abc import Hashable, Sequence

import ml_dtypes
import numpy as np
import tvm

from dspark_compiler.schedules.bench import Operand, Sample, gated
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.layouts import padded_depth
from dspark_compiler.schedules.simt.row_schedule import RowSchedule, candidate_schedules
from dspark_compiler.schedules.simt.stream_linear import Options, stream_linear
from dspark_compiler.schedules.simt.tile_linear import tile_linear

_WEIGHT_BYTES = 2 << 20  # of a sample's weight, about; the whole repeats it
_TOLERANCE = 1e-4  # of the output's largest number: sums are float32


class RowLinears:
    """See LinearSpace."""

    def key(self, work: LinearWorkload) -> LinearWorkload:
        """See LinearSpace."""
        return work

    def candidates(self, work: LinearWorkload) -> Sequence[RowSchedule]:
        """See LinearSpace."""
        return candidate_schedules(work)

    def order(self, schedule: object) -> Hashable:
        """See LinearSpace: the teams of a row share its depth."""
        assert isinstance(schedule, RowSchedule)
        return schedule.splits

    def kernel(self, work: LinearWorkload, schedule: object) -> tvm.tirx.PrimFunc:
        """See LinearSpace."""
        assert isinstance(schedule, RowSchedule)
        options = Options(activation="silu" if work.gated else None)
        if schedule.splits == 0:
            return tile_linear("main", work, options)
        return stream_linear("main", work, schedule, options)

    def sample(self, work: LinearWorkload) -> Sample:
        """See LinearSpace."""
        rng = np.random.default_rng(0)
        padded, itemsize = padded_depth(work.depth, work.weight_dtype), 4 if work.weight_dtype == "float32" else 2
        period = max(1, min(work.features, _WEIGHT_BYTES // (padded * itemsize)))
        kept = np.dtype(ml_dtypes.bfloat16 if work.weight_dtype == "uint16" else work.weight_dtype)
        weight = np.zeros((period, padded), kept)
        weight[:, : work.depth] = rng.standard_normal((period, work.depth)) / work.depth**0.5
        x = rng.standard_normal((work.rows, work.depth)).astype(np.float32)
        product = x.astype(np.float64) @ weight[:, : work.depth].astype(np.float64).T
        product = product[:, np.arange(work.features) % period]
        stored = weight.view(np.uint16) if work.weight_dtype == "uint16" else weight
        operands = (Operand(x, x.shape), Operand(stored, (work.features, padded), cold=True))
        return Sample(operands, gated(product) if work.gated else product, "float32", _TOLERANCE)
