"""What lowering and tuning must know of a target's packed products."""

from collections.abc import Hashable, Sequence
from typing import Protocol

import tvm

from dspark_compiler.schedules.bench import Sample
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule
from dspark_compiler.schedules.cuda.tile_schedule import TileSchedule
from dspark_compiler.schedules.linear_schedule import LinearSchedule, LinearWorkload
from dspark_compiler.schedules.simt.row_schedule import RowSchedule

Schedule = LinearSchedule | StreamSchedule | TileSchedule | RowSchedule


class LinearSpace(Protocol):
    """The schedules of a target's packed products, and the kernels they make."""

    def key(self, work: LinearWorkload) -> LinearWorkload:
        """The workload whose records serve this one, too."""

    def candidates(self, work: LinearWorkload) -> Sequence[Schedule]:
        """All that is worth measuring, the choice without a record first."""

    def order(self, schedule: Schedule) -> Hashable:
        """The order in which products are summed: where it is the same, results are the same to the last bit.

        Entry points of a model differ in their number of rows and must agree, so all rows of a weight share one.
        """

    def kernel(self, work: LinearWorkload, schedule: Schedule) -> tvm.tirx.PrimFunc:
        """The product alone: what is done to its sums does not sway which schedule is best."""

    def sample(self, work: LinearWorkload) -> Sample:
        """Random arguments of ``kernel``."""
