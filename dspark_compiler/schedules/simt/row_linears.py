"""Packed products as lowering and tuning see them: streams for few rows, tiles for many."""

from collections.abc import Hashable, Sequence

import ml_dtypes
import numpy as np
import tvm

from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.bench import Operand, Sample, gated
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.row_schedule import RowSchedule, candidate_schedules
from dspark_compiler.schedules.simt.stream_linear import form_of, stream_linear
from dspark_compiler.schedules.simt.stream_output import Options
from dspark_compiler.schedules.simt.tile_linear import tile_linear
from dspark_compiler.schedules.simt.weights import pack_codes, pack_tiles

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
        rng, form = np.random.default_rng(0), form_of(work)
        args = form.args()
        period = max(1, min(work.features, _WEIGHT_BYTES // (int(args[0].shape[1]) * _size(args[0].dtype))))
        weight, parts = _weight(rng, period, work)
        x = rng.standard_normal((work.rows, work.depth)).astype(np.float32)
        product = (x.astype(np.float64) @ weight.T)[:, np.arange(work.features) % period]
        stored = (Operand(part, arg.shape, cold=arg.name == "w") for part, arg in zip(parts, args, strict=True))
        return Sample((Operand(x, x.shape), *stored), gated(product) if work.gated else product, "float32", _TOLERANCE)


def _size(dtype: str) -> int:
    return int(tvm.DataType(dtype).bits) // 8


def _weight(rng: np.random.Generator, features: int, work: LinearWorkload) -> tuple[np.ndarray, list[np.ndarray]]:
    """A weight [features, depth] as float64, and what it is stored as; its products with rows are about 1."""
    size, form = (features, work.depth), WeightFormat.parse(work.weight_dtype)
    normal = rng.standard_normal(size) / work.depth**0.5
    if form is None:
        rounded = normal.astype(ml_dtypes.bfloat16 if work.weight_dtype == "uint16" else work.weight_dtype)
        packed = np.zeros((features, form_of(work).padded), rounded.dtype)
        packed[:, : work.depth] = rounded
        packed = pack_tiles(packed) if form_of(work).tiled else packed
        return rounded.astype(np.float64), [packed.view(np.uint16) if work.weight_dtype == "uint16" else packed]
    if form.codes == "float8_e4m3":
        codes = normal.astype(ml_dtypes.float8_e4m3fn)
    else:
        codes = rng.integers(-(1 << form.bits - 1), 1 << form.bits - 1, size).astype(np.int8)
    largest = 1.0 if form.codes == "float8_e4m3" else float(1 << form.bits - 2) * work.depth**0.5
    factors = rng.uniform(0.5, 1.5, (1 + form.offsets, features, form.groups(work.depth))) / largest
    scales, *offsets = factors.astype(work.scale_dtype)
    stored = [scales, *(offset.astype(np.float32) for offset in offsets)]
    spread = [part.astype(np.float64)[:, np.arange(work.depth) // form.columns(work.depth)] for part in stored]
    return codes.astype(np.float64) * spread[0] + sum(spread[1:]), [pack_codes(form, codes), *stored]
