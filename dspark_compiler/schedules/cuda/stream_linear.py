"""x @ W.T for few rows on Nvidia GPUs, at the speed at which W comes from memory; norm, bias and residual ride along.

W lies in tiles (fragments.py, quantized_fragments.py). A block takes a few stripes of 16 features and its warps share
their depth; the parts meet in shared memory and are added in a fixed order, the same for any number of rows.
"""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.quantized_fragments import tile_depth
from dspark_compiler.schedules.cuda.stream_kernel import Around, StreamKernel
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule, default_stream_schedule
from dspark_compiler.schedules.cuda.weight_forms import WeightForm
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.tir import Arg, Expr, made_once

# Rows up to which every block's own norm of x takes less time than a kernel for it (measured on an H200).
EARLY_NORM_ROWS = 2


@made_once
def stream_linear(
    name: str,
    work: LinearWorkload,
    dtype: str,
    schedule: StreamSchedule | None = None,
    *,
    group: int | None = None,
    offsets: bool = False,
    bias: bool = False,
    residual: bool = False,
    every: tuple[int, int] = (1, 0),
    norm_eps: float | None = None,
    late_norm: bool = False,
    feeds_norm: bool = False,
    out_dtype: str = "float32",
) -> tvm.tirx.PrimFunc:
    """Kernel for y[M,N] = x[M,K] @ W.T (+ bias) (+ residual).

    Arguments: x, packed W, [scale, [offset]], [bias], [residual], [norm weight or squares], [next norm's weight], y,
    [product, squares].

    Args:
        name: name of the function.
        work: M (1 to 32), N, K (a multiple of 8) and W's stored type: "int8", "int4", "float8_e4m3fn", else ``dtype``.
        dtype: of x and of the operands of products, "bfloat16" or "float16"; sums are float32.
        schedule: how the work is cut; None for the default.
        group: columns of a tile of W that share a scale (``tile_group``), 0 for all of a row; None for what is usual,
            those of a tile where codes have four bits and a row where they have eight.
        offsets: whether groups have an offset, too.
        bias: whether float32 [N] is added.
        residual: whether float32 [M, N] is added.
        every: step and first of the rows of a residual [step M, N] that are added.
        norm_eps: if given, x goes through an RMS norm first.
        late_norm: whether x is what a kernel that feeds a norm made of it (late_norm.py), with its squares. Otherwise x
            is float32, and each block works its norm out anew: for up to EARLY_NORM_ROWS.
        feeds_norm: whether x of a next kernel with a late norm is made, too; N is a multiple of 16 then.
        out_dtype: of y.

    Raises:
        ValueError: x of a norm that is not late does not fit shared memory.
    """
    y = Arg("y", (work.rows, work.features), out_dtype)
    form = _form(work, dtype, group, offsets)
    cut = schedule or default_stream_schedule(work)
    around = Around(bias, residual, every, norm_eps, late_norm, feeds_norm)
    return StreamKernel(work, form, cut, around, y, 1, lambda sums: sums[0]).build(name)


@made_once
def stream_gated_linear(
    name: str,
    work: LinearWorkload,
    dtype: str,
    schedule: StreamSchedule | None = None,
    *,
    activation: str,
    group: int | None = None,
    offsets: bool = False,
    norm_eps: float | None = None,
    late_norm: bool = False,
    out_dtype: str | None = None,
) -> tvm.tirx.PrimFunc:
    """Kernel for y[M,I] = act(x @ W[:I].T) * (x @ W[I:].T), Shazeer 2020 (arXiv 2002.05202).

    Arguments: x, packed W, [scale, [offset]], [norm weight or squares], y.

    Args:
        name: name of the function.
        work: M, N = 2I, K, ``gated``; I a multiple of 16 (``FragmentLayouts.can_gate``).
        dtype: as for ``stream_linear``.
        schedule: as for ``stream_linear``; its stripes are of y.
        activation: a key of ACTIVATIONS.
        group: as for ``stream_linear``.
        offsets: as for ``stream_linear``.
        norm_eps: as for ``stream_linear``.
        late_norm: as for ``stream_linear``.
        out_dtype: of y; None for ``dtype``.
    """
    act = ACTIVATIONS[activation]
    y = Arg("y", (work.rows, work.features // 2), out_dtype or dtype)
    form = _form(work, dtype, group, offsets)
    cut = schedule or default_stream_schedule(work)
    around = Around(norm_eps=norm_eps, late_norm=late_norm)
    return StreamKernel(work, form, cut, around, y, 2, lambda sums: act(sums[0]) * sums[1]).build(name)


def _form(work: LinearWorkload, dtype: str, group: int | None, offsets: bool) -> WeightForm:
    usual = tile_depth("int4") if work.weight_dtype == "int4" else 0
    return WeightForm(work.features, work.depth, work.weight_dtype, dtype, usual if group is None else group, offsets)


def _silu(x: Expr) -> Expr:
    return x / (T.float32(1.0) + T.exp(-x))


def _gelu_tanh(x: Expr) -> Expr:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); Hendrycks & Gimpel 2016."""
    inner = T.float32(0.7978845608028654) * (x + T.float32(0.044715) * x * x * x)
    return T.float32(0.5) * x * (T.float32(1.0) + T.tanh(inner))


ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {"silu": _silu, "gelu_tanh": _gelu_tanh}
