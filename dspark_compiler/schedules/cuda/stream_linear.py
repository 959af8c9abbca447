"""x @ W.T for few rows on Nvidia GPUs, at the speed at which W comes from memory; norm, bias and residual ride along.

W lies in tiles (fragments.py). A block takes a few stripes of 16 features, its warps share their depth, and so may the
blocks of a cluster; the parts meet in shared memory and are added in a fixed order, the same for any number of rows.
"""

from collections.abc import Callable, Sequence

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.cluster import clustered
from dspark_compiler.schedules.cuda.fragments import TILE_ROWS, fragment_shape
from dspark_compiler.schedules.cuda.stream_inputs import Inputs, normed_inputs, written_float, written_inputs
from dspark_compiler.schedules.cuda.stream_meeting import Finish, meet
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule, default_stream_schedule
from dspark_compiler.schedules.cuda.stream_tiles import Worker, stream_tiles
from dspark_compiler.schedules.cuda.threads import WARP, address, launch
from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel


def stream_linear(
    name: str,
    work: LinearWorkload,
    dtype: str,
    schedule: StreamSchedule | None = None,
    *,
    bias: bool = False,
    residual: bool = False,
    norm_eps: float | None = None,
    out_dtype: str = "float32",
) -> tvm.tirx.PrimFunc:
    """Kernel for y[M,N] = x[M,K] @ W.T (+ bias) (+ residual).

    Arguments: x, packed W, [bias [N]], [residual [M,N]], [norm weight [K]], y.

    Args:
        name: name of the function.
        work: M (1 to 32), N, K (a multiple of 8).
        dtype: of x and W, "bfloat16" or "float16"; sums, bias, residual and norm weight are float32.
        schedule: how the work is cut; None for the default.
        bias: whether there is a bias.
        residual: whether something is added to the whole result.
        norm_eps: if given, x is float32 and goes through an RMS norm first.
        out_dtype: of y.
    """

    def finish(sums: Sequence[Expr], row: Expr, feature: Expr, extra: Sequence[Buffer]) -> Expr:
        (value,) = sums
        terms = iter(extra)
        if bias:
            value = value + next(terms)[feature]
        if residual:
            value = value + written_float(address(next(terms), row, feature))
        return value

    extras = [
        *([Arg("bias", (work.features,))] if bias else []),
        *([Arg("residual", (work.rows, work.features))] if residual else []),
    ]
    y = Arg("y", (work.rows, work.features), out_dtype)
    return _stream(name, work, dtype, schedule or default_stream_schedule(work), [0], extras, norm_eps, y, finish)


def stream_gated_linear(
    name: str,
    work: LinearWorkload,
    dtype: str,
    schedule: StreamSchedule | None = None,
    *,
    activation: str,
    norm_eps: float | None = None,
    out_dtype: str | None = None,
) -> tvm.tirx.PrimFunc:
    """Kernel for y[M,I] = act(x @ W[:I].T) * (x @ W[I:].T), Shazeer 2020; arguments x, packed W, [norm weight [K]], y.

    Args:
        name: name of the function.
        work: M, N = 2I, K, ``gated``; I a multiple of 16 (``can_gate_stripes``).
        dtype: as for ``stream_linear``.
        schedule: as for ``stream_linear``; its stripes are of y.
        activation: "silu" or "gelu_tanh".
        norm_eps: as for ``stream_linear``.
        out_dtype: of y; None for ``dtype``.
    """
    activate = ACTIVATIONS[activation]
    features = work.features // 2

    def finish(sums: Sequence[Expr], row: Expr, feature: Expr, extra: Sequence[Buffer]) -> Expr:
        gate, up = sums
        return activate(gate) * up

    y = Arg("y", (work.rows, features), out_dtype or dtype)
    cut = schedule or default_stream_schedule(work)
    return _stream(name, work, dtype, cut, [0, features // TILE_ROWS], [], norm_eps, y, finish)


def can_gate_stripes(features: int) -> bool:
    """Whether gate and up stripes meet: each half must be whole stripes."""
    return features % TILE_ROWS == 0


def _stream(
    name: str,
    work: LinearWorkload,
    dtype: str,
    cut: StreamSchedule,
    parts: Sequence[int],
    extras: Sequence[Arg],
    norm_eps: float | None,
    output: Arg,
    finish: Callable[[Sequence[Expr], Expr, Expr, Sequence[Buffer]], Expr],
) -> tvm.tirx.PrimFunc:
    """The kernel; y's stripe s is made from W's stripes s + p for each p of ``parts``."""
    shape = fragment_shape(work.features, work.depth)
    threads = cut.warps * WARP

    def body(x: Buffer, w: Buffer, *rest: Buffer) -> None:
        *extra, y = rest
        with launch((shape[0] // len(parts) // cut.stripes * cut.splits,), threads) as (block, thread):
            with clustered(cut.splits):
                first, rank = block // cut.splits * cut.stripes, block % cut.splits
                worker = Worker(rank * cut.warps + thread // WARP, cut.splits * cut.warps, thread % WARP)
                stripes = [first + j + part for part in parts for j in range(cut.stripes)]

                def inputs() -> Inputs:
                    if norm_eps is None:
                        return written_inputs(x)
                    return normed_inputs(x, extra[-1], norm_eps, thread, threads, dtype)

                def ending(sums: Sequence[Expr], row: Expr, feature: Expr) -> Expr:
                    return finish(sums, row, feature, extra)

                sums = stream_tiles(w, stripes, inputs, worker, cut.ahead, dtype)
                end: Finish = ending
                meet(sums, y, first, rank, thread, cut, end)

    args = [
        Arg("x", (work.rows, work.depth), dtype if norm_eps is None else "float32"),
        Arg("w", shape, dtype),
        *extras,
        *([] if norm_eps is None else [Arg("norm_weight", (work.depth,))]),
        output,
    ]
    return tag(kernel(name, args, body), work)


def _silu(x: Expr) -> Expr:
    return x / (T.float32(1.0) + T.exp(-x))


def _gelu_tanh(x: Expr) -> Expr:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); Hendrycks & Gimpel 2016."""
    inner = T.float32(0.7978845608028654) * (x + T.float32(0.044715) * x * x * x)
    return T.float32(0.5) * x * (T.float32(1.0) + T.tanh(inner))


ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {"silu": _silu, "gelu_tanh": _gelu_tanh}
