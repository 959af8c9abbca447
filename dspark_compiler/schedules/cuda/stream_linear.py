"""x @ W.T for few rows on Nvidia GPUs, at the speed at which W comes from memory; norm, bias and residual ride along.

W lies in tiles (fragments.py, quantized_fragments.py). A block takes a few stripes of 16 features and its warps share
their depth; the parts meet in shared memory and are added in a fixed order, the same for any number of rows.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, TILE_ROWS
from dspark_compiler.schedules.cuda.late_norm import LateScales, late_norm_output, late_norm_parts
from dspark_compiler.schedules.cuda.memory_reads import written_float
from dspark_compiler.schedules.cuda.stream_inputs import Inputs, normed_inputs, written_inputs
from dspark_compiler.schedules.cuda.stream_meeting import meet
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule, default_stream_schedule
from dspark_compiler.schedules.cuda.stream_tiles import Weights, Worker, stream_tiles
from dspark_compiler.schedules.cuda.threads import WARP, address, launch
from dspark_compiler.schedules.cuda.weight_forms import WeightForm
from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when


@dataclass(frozen=True)
class Around:
    """What a streaming linear kernel does besides the product, in the order of its arguments.

    Attributes:
        bias: float32 [N] is added.
        residual: float32 [M, N] is added.
        norm_eps: x goes through an RMS norm with float32 weight [K] first.
        late_norm: of that norm the kernel before did all but the scale (late_norm.py): x is its product, and in place
            of the weight come its sums of squares. Otherwise x is float32, and each block works its norm out anew:
            right for one or two rows.
        feeds_norm: after y come norm weight [N], product and squares for a next kernel with a late norm.
    """

    bias: bool = False
    residual: bool = False
    norm_eps: float | None = None
    late_norm: bool = False
    feeds_norm: bool = False


def stream_linear(
    name: str,
    work: LinearWorkload,
    dtype: str,
    schedule: StreamSchedule | None = None,
    around: Around = Around(),
    *,
    zeros: bool = False,
    out_dtype: str = "float32",
) -> tvm.tirx.PrimFunc:
    """Kernel for y[M,N] = norm(x[M,K]) @ W.T + bias + residual, but for x @ W.T the rest as ``around`` says.

    Arguments: x, packed W, [scale, [zero]], [bias], [residual], [norm weight or squares], y, [norm weight, product,
    squares].

    Args:
        name: name of the function.
        work: M (1 to 32), N, K (a multiple of 8) and W's stored type: "int8", "int4", "float8_e4m3fn", else ``dtype``.
        dtype: of x and of the operands of products, "bfloat16" or "float16"; sums are float32.
        schedule: how the work is cut; None for the default.
        around: what else the kernel does.
        zeros: whether int4 has zero points.
        out_dtype: of y.
    """
    y = Arg("y", (work.rows, work.features), out_dtype)
    form = WeightForm(work.features, work.depth, work.weight_dtype, dtype, zeros)
    cut = schedule or default_stream_schedule(work)
    return _stream(name, work, form, cut, around, 1, y, lambda sums: sums[0])


def stream_gated_linear(
    name: str,
    work: LinearWorkload,
    dtype: str,
    schedule: StreamSchedule | None = None,
    around: Around = Around(),
    *,
    activation: str,
    zeros: bool = False,
    out_dtype: str | None = None,
) -> tvm.tirx.PrimFunc:
    """Kernel for y[M,I] = act(x @ W[:I].T) * (x @ W[I:].T), Shazeer 2020 (arXiv 2002.05202).

    Arguments: x, packed W, [scale, [zero]], [norm weight or squares], y.

    Args:
        name: name of the function.
        work: M, N = 2I, K, ``gated``; I a multiple of 16 (``can_gate_stripes``).
        dtype: as for ``stream_linear``.
        schedule: as for ``stream_linear``; its stripes are of y.
        around: a norm of x, nothing else.
        activation: a key of ACTIVATIONS.
        zeros: as for ``stream_linear``.
        out_dtype: of y; None for ``dtype``.
    """
    act = ACTIVATIONS[activation]
    y = Arg("y", (work.rows, work.features // 2), out_dtype or dtype)
    form = WeightForm(work.features, work.depth, work.weight_dtype, dtype, zeros)
    cut = schedule or default_stream_schedule(work)
    return _stream(name, work, form, cut, around, 2, y, lambda sums: act(sums[0]) * sums[1])


def can_gate_stripes(features: int) -> bool:
    """Whether gate and up stripes meet: each half must be whole stripes."""
    return features % TILE_ROWS == 0


def _stream(
    name: str,
    work: LinearWorkload,
    form: WeightForm,
    cut: StreamSchedule,
    around: Around,
    parts: int,
    output: Arg,
    combine: Callable[[Sequence[Expr]], Expr],
) -> tvm.tirx.PrimFunc:
    """The kernel; W's rows are ``parts`` weights of as many rows as y has features, one after the other."""
    args = _args(work, form, around, output)
    features, threads = output.shape[1], cut.warps * WARP
    stripes = -(-features // TILE_ROWS)
    padded = form.args()[0].shape[1] * form.units * TILE_DEPTH

    def body(*buffers: Buffer) -> None:
        given = dict(zip([arg.name for arg in args], buffers, strict=True))
        late: list[LateScales] = []

        def inputs(thread: Expr) -> Inputs:
            if around.norm_eps is not None and not around.late_norm:
                weight = given["norm_weight"]
                return normed_inputs(given["x"], weight, around.norm_eps, padded, thread, threads, form.dtype)
            if around.norm_eps is not None:
                late.append(LateScales(given["squares"], work.depth, around.norm_eps, thread, cut.warps))
            return written_inputs(given["x"], padded)

        def store(sums: Sequence[Expr], row: Expr, feature: Expr) -> None:
            values = [T.Bind(total) for total in sums]
            if form.quantized and not form.grouped:
                values = [value * given["scale"][feature + part * features] for part, value in enumerate(values)]
            if late:
                values = [value * late[0][row] for value in values]
            value = combine(values)
            if around.bias:
                value = value + given["bias"][feature]
            if around.residual:
                value = value + written_float(address(given["residual"], row, feature))
            value = T.Bind(value)
            T.buffer_store(given["y"], T.cast(value, output.dtype), [row, feature])
            if around.feeds_norm:
                late_norm_output(value, row, feature, features, *(given[name] for name in _FED))

        def store_inside(first: Expr, sums: Sequence[Expr], row: Expr, place: Expr) -> None:
            feature = first * TILE_ROWS + place
            with when(feature < features) if features % (TILE_ROWS * cut.stripes) else nullcontext():
                store(sums, row, feature)

        with launch((-(-stripes // cut.stripes),), threads) as (block, thread):
            first = block * cut.stripes
            # The last block may have stripes to spare; it does the last one again.
            taken = [T.min(first + j, stripes - 1) if stripes % cut.stripes else first + j for j in range(cut.stripes)]
            taken = [stripe + part * stripes for part in range(parts) for stripe in taken]
            weights = Weights(
                form, given["w"], given["scale"] if form.grouped else None, given["zero"] if form.zeros else None, taken
            )
            worker = Worker(thread // WARP, cut.warps, thread % WARP)
            sums = stream_tiles(weights, lambda: inputs(thread), worker, cut.ahead, cut.fetch)
            for scales in late:
                scales.add_up()
            meet(sums, work.rows, cut.stripes, cut.warps, thread, partial(store_inside, first))

    return tag(kernel(name, args, body), work)


_FED = ("next_weight", "product", "product_squares")


def _args(work: LinearWorkload, form: WeightForm, around: Around, output: Arg) -> list[Arg]:
    rows, features = output.shape
    fused = around.norm_eps is not None and not around.late_norm
    args = [Arg("x", (rows, work.depth), "float32" if fused else form.dtype), *form.args()]
    if around.bias:
        args.append(Arg("bias", (features,)))
    if around.residual:
        args.append(Arg("residual", (rows, features)))
    if around.norm_eps is not None:
        squares = Arg("squares", (rows, late_norm_parts(work.depth)))
        args.append(squares if around.late_norm else Arg("norm_weight", (work.depth,)))
    args.append(output)
    if around.feeds_norm:
        shapes = ((features,), (rows, features), (rows, late_norm_parts(features)))
        args.extend(map(Arg, _FED, shapes, ("float32", form.dtype, "float32")))
    return args


def _silu(x: Expr) -> Expr:
    return x / (T.float32(1.0) + T.exp(-x))


def _gelu_tanh(x: Expr) -> Expr:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); Hendrycks & Gimpel 2016."""
    inner = T.float32(0.7978845608028654) * (x + T.float32(0.044715) * x * x * x)
    return T.float32(0.5) * x * (T.float32(1.0) + T.tanh(inner))


ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {"silu": _silu, "gelu_tanh": _gelu_tanh}
