"""Packed products on a CPU, as lowering and tuning see them."""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import tvm

from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.bench import Operand, Sample, gated
from dspark_compiler.schedules.gated_linear import gated_linear
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear import packed_linear
from dspark_compiler.schedules.linear_schedule import LinearSchedule, LinearWorkload, candidate_schedules
from dspark_compiler.schedules.measure import random_arrays
from dspark_compiler.schedules.quantized_codes import unpack_panels

# Inputs are about 1 in size: the error of an in-order float32 sum stays well below this.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PanelLinears:
    """See LinearSpace; ``isa`` is what the kernels are shaped for."""

    isa: VectorIsa

    def key(self, work: LinearWorkload) -> LinearWorkload:
        """See LinearSpace: each workload has its own records."""
        return work

    def candidates(self, work: LinearWorkload) -> list[LinearSchedule]:
        """See LinearSpace."""
        return candidate_schedules(work, self.isa)

    def order(self, schedule: object) -> Hashable:
        """See LinearSpace: sums are over k in order under any schedule."""
        return None

    def kernel(self, work: LinearWorkload, schedule: object) -> tvm.tirx.PrimFunc:
        """See LinearSpace."""
        assert isinstance(schedule, LinearSchedule)
        if work.gated:
            return gated_linear("main", work, self.isa, schedule, activation="silu")
        return packed_linear("main", work, self.isa, schedule)

    def sample(self, work: LinearWorkload) -> Sample:
        """See LinearSpace."""
        x, *weight, _ = random_arrays(self.kernel(work, self.candidates(work)[0]))
        operands = [Operand(x, x.shape), *(Operand(part, part.shape, cold=i == 0) for i, part in enumerate(weight))]
        return Sample(tuple(operands), _expected(work, x, *weight), "float32", _TOLERANCE)


def _expected(work: LinearWorkload, x: np.ndarray, packed: np.ndarray, *factors: np.ndarray) -> np.ndarray:
    form = WeightFormat.parse(work.weight_dtype)
    if form is not None:
        packed = unpack_panels(form, packed, *factors)
    elif packed.dtype == np.uint16:
        packed = (packed.astype(np.uint32) << 16).view(np.float32)
    weight = packed.swapaxes(1, 2).reshape(-1, work.depth)[: work.features]
    product: np.ndarray = x.astype(np.float64) @ weight.T.astype(np.float64)
    return gated(product) if work.gated else product
