"""Packed products on an Nvidia GPU, as lowering and tuning see them: streams for few rows, tiles for many."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import tvm

from dspark_compiler.schedules.bench import Operand, Sample, gated
from dspark_compiler.schedules.cuda import stream_schedule, tile_schedule
from dspark_compiler.schedules.cuda.fragments import TILE_ROWS, fragment_shape, pack_fragments
from dspark_compiler.schedules.cuda.quantized_fragments import (
    BITS,
    group_shape,
    pack_bytes,
    pack_groups,
    pack_nibbles,
    tile_depth,
)
from dspark_compiler.schedules.cuda.stream_linear import stream_gated_linear, stream_linear
from dspark_compiler.schedules.cuda.stream_schedule import FEW_ROWS, StreamSchedule
from dspark_compiler.schedules.cuda.tile_linear import tile_gated_linear, tile_linear
from dspark_compiler.schedules.cuda.tile_schedule import TileSchedule
from dspark_compiler.schedules.linear_schedule import LinearWorkload

_DTYPE = "bfloat16"  # measured with; float16 is as wide and as fast
_WEIGHT_BYTES = 2 << 20  # of a sample's weight, about; the whole repeats it
# Of the output's largest number: sums are float32, gated outputs are stored in _DTYPE.
_TOLERANCE, _GATED_TOLERANCE = 1e-3, 1e-2


@dataclass(frozen=True)
class FragmentLinears:
    """See LinearSpace; ``arch`` is what the kernels are for, such as sm_90a."""

    arch: str

    def key(self, work: LinearWorkload) -> LinearWorkload:
        """See LinearSpace: weights of two bytes are alike."""
        return replace(work, weight_dtype=_DTYPE) if work.weight_dtype == "float16" else work

    def candidates(self, work: LinearWorkload) -> Sequence[StreamSchedule | TileSchedule]:
        """See LinearSpace."""
        if work.rows <= FEW_ROWS:
            return stream_schedule.candidate_schedules(work)
        return tile_schedule.candidate_schedules(work, self.arch)

    def order(self, schedule: object) -> Hashable:
        """See LinearSpace: the warps of a stream share the depth, tiles sum over it in order."""
        return schedule.warps if isinstance(schedule, StreamSchedule) else None

    def kernel(self, work: LinearWorkload, schedule: object) -> tvm.tirx.PrimFunc:
        """See LinearSpace."""
        if isinstance(schedule, StreamSchedule):
            if work.gated:
                return stream_gated_linear("main", work, _DTYPE, schedule, activation="silu")
            return stream_linear("main", work, _DTYPE, schedule)
        assert isinstance(schedule, TileSchedule)
        if work.gated:
            return tile_gated_linear("main", work, _DTYPE, schedule, arch=self.arch, activation="silu")
        return tile_linear("main", work, _DTYPE, schedule, arch=self.arch)

    def sample(self, work: LinearWorkload) -> Sample:
        """See LinearSpace."""
        rng = np.random.default_rng(0)
        stripes, *_ = fragment_shape(work.features, work.depth)
        period = TILE_ROWS * max(1, min(stripes, _WEIGHT_BYTES // (work.depth * TILE_ROWS * 2)))
        weight, factors = _weight(rng, period, work)
        x = rng.standard_normal((work.rows, work.depth)).astype(ml_dtypes.bfloat16)
        product = (x.astype(np.float64) @ weight.T)[:, np.arange(work.features) % period]
        packed = [Operand(part, (stripes, *part.shape[1:]), cold=True) for part in factors if part.ndim > 1]
        scales = [np.resize(part, work.features) for part in factors if part.ndim == 1]
        operands = (Operand(x, x.shape), *packed, *(Operand(scale, scale.shape) for scale in scales))
        if work.gated:
            return Sample(operands, gated(product), _DTYPE, _GATED_TOLERANCE)
        return Sample(operands, product, "float32", _TOLERANCE)


def _weight(rng: np.random.Generator, features: int, work: LinearWorkload) -> tuple[np.ndarray, list[np.ndarray]]:
    """A weight [features, K] as float64, and the tensors it is stored as; its products with rows are about 1."""
    size, stored = (features, work.depth), work.weight_dtype
    normal = (rng.standard_normal(size) / work.depth**0.5).astype(np.float32)
    if stored not in BITS:
        rounded = normal.astype(ml_dtypes.bfloat16)
        return rounded.astype(np.float64), [pack_fragments(rounded)]
    if stored == "int4":
        codes = rng.integers(-8, 8, size)
        group = tile_depth(stored)
        scales = (rng.uniform(0.1, 0.3, (features, -(-work.depth // group))) / work.depth**0.5).astype(np.float16)
        spread = scales.astype(np.float64)[:, np.arange(work.depth) // group]
        packed = pack_groups(scales, group_shape(features, work.depth, stored, group))
        return codes * spread, [pack_nibbles(codes), packed]
    scales = rng.uniform(0.5, 1.5, features).astype(np.float32)
    if stored == "int8":
        codes, scales = rng.integers(-127, 128, size).astype(np.int8), scales / (64 * work.depth**0.5)
    else:
        codes = normal.astype(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float64) * scales.astype(np.float64)[:, None], [pack_bytes(codes), scales]
