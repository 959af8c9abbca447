"""Linears of few rows on any Vulkan device: by cooperative matrices where it has them, else as on any GPU.

Matrices await x, and so does a single row of float32 without them where launches overlap. Of several rows each work
group would bring all, and take as many registers for their sums as for the weight it is to hold meanwhile: barriers are
faster. So they are for codes in groups, whose scales would be asked for behind the wait.
The choice is made by the host at each launch, so that one artifact has all.
"""

from collections.abc import Callable
from dataclasses import replace

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.simt.awaited import hands_on, overlaps
from dspark_compiler.schedules.simt.row_schedule import RowSchedule
from dspark_compiler.schedules.simt.stream_linear import MOST_ROWS, StreamForm, emit_stream_linear, form_of, stream_args
from dspark_compiler.schedules.simt.stream_output import PLAIN, Options
from dspark_compiler.schedules.tir import Buffer, Expr, kernel, made_once
from dspark_compiler.schedules.vulkan.matrices import FEW, HAS_MATRICES, Matrices
from dspark_compiler.schedules.vulkan.matrix_cut import MatrixCut
from dspark_compiler.schedules.vulkan.matrix_stream import emit_matrix_stream

AWAITING = StreamForm(threads=512, lines=8, in_flight=16, awaits=True)


@made_once
def stream_linear(
    name: str, work: LinearWorkload, schedule: RowSchedule, options: Options = PLAIN, *, by_matrices: bool = True
) -> tvm.tirx.PrimFunc:
    """Kernel with the arguments of simt's; not ``by_matrices``, nothing is rounded to float16."""
    args, cut = stream_args(work, options), MatrixCut.of(work) if by_matrices else None
    awaits_one = work.rows == 1 and not form_of(work).by_group
    # As calls of few rows are given it (eighths.py): more rows beside a row do not change its bits.
    rounds = cut is not None and cut.per == 1 and options.norm_eps is None and not options.reads_eighths

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        if cut is None:
            by_numbers(of)
            return
        has_matrices = T.call_packed(HAS_MATRICES, T.int32(FEW), T.int32(MatrixCut.most_bytes(work))) != 0
        _either(has_matrices, lambda: emit_matrix_stream(work, cut, options, of, Matrices(FEW)), lambda: by_numbers(of))

    def by_numbers(of: dict[str, Buffer]) -> None:
        def stream(form: StreamForm) -> None:
            emit_stream_linear(work, schedule, options, of, replace(form, rounds=rounds))

        if not awaits_one or options.reads_eighths:
            stream(StreamForm())
            return
        _either(overlaps(AWAITING.threads), lambda: stream(AWAITING), lambda: stream(StreamForm()))

    function = tag(kernel(name, args, body), work)
    # As a launch publishes all of y; of two, the second would publish it again.
    awaits = awaits_one or (cut is not None and (work.rows <= MOST_ROWS or work.rows % MOST_ROWS == 0))
    return hands_on(function, args, publishes=["y"], awaits=["x", "residual"]) if awaits else function


def _either(condition: Expr, one: Callable[[], None], other: Callable[[], None]) -> None:
    with T.If(condition):
        with T.Then():
            one()
        with T.Else():
            other()
