"""Linears of few rows on any Vulkan device: of one row, awaiting it where launches overlap, else as on any GPU.

The choice is made by the host at each launch, so that one artifact has both. Of several rows of x each work group would
bring all, and take as many registers for their sums as for the weight it is to hold meanwhile: barriers are faster.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.simt.awaited import hands_on
from dspark_compiler.schedules.simt.row_schedule import RowSchedule
from dspark_compiler.schedules.simt.stream_linear import StreamForm, emit_stream_linear, stream_args
from dspark_compiler.schedules.simt.stream_output import PLAIN, Options
from dspark_compiler.schedules.tir import Buffer, kernel
from dspark_compiler.schedules.vulkan.overlap import overlaps

AWAITING = StreamForm(threads=512, lines=8, in_flight=16, awaits=True)


def stream_linear(
    name: str, work: LinearWorkload, schedule: RowSchedule, options: Options = PLAIN
) -> tvm.tirx.PrimFunc:
    """Kernel with the arguments of simt's, and its bits."""
    args = stream_args(work, options)

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        if work.rows > 1:
            emit_stream_linear(work, schedule, options, of, StreamForm())
            return
        with T.If(overlaps(AWAITING.threads)):
            with T.Then():
                emit_stream_linear(work, schedule, options, of, AWAITING)
            with T.Else():
                emit_stream_linear(work, schedule, options, of, StreamForm())

    function = tag(kernel(name, args, body), work)
    return hands_on(function, args, publishes=["y"], awaits=["x", "residual"]) if work.rows == 1 else function
