"""x @ W.T for many rows, W packed by fragments.py: the template of prefill's linear layers.

Products are of 2-byte elements, sums float32 and over k in order, so a row's result does not depend on the others or on
the schedule. Hopper has its own kernel (tile_wgmma.py), other architectures since sm_80 share one (tile_mma.py).
"""

import tvm

from dspark_compiler.schedules.cuda.fragments import TILE_ROWS, fragment_shape
from dspark_compiler.schedules.cuda.tile_mma import emit_mma_tiles
from dspark_compiler.schedules.cuda.tile_output import TileOutput
from dspark_compiler.schedules.cuda.tile_schedule import TileSchedule, default_tile_schedule, has_wgmma
from dspark_compiler.schedules.cuda.tile_wgmma import emit_wgmma_tiles
from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.tir import Arg, Buffer, kernel, made_once


@made_once
def tile_linear(
    name: str,
    work: LinearWorkload,
    dtype: str,
    schedule: TileSchedule | None = None,
    *,
    arch: str,
    bias: bool = False,
    residual: bool = False,
    out_dtype: str = "float32",
) -> tvm.tirx.PrimFunc:
    """Kernel for y[M,N] = x[M,K] @ W.T (+ bias) (+ residual); arguments x, packed w, [bias], [residual], y.

    Args:
        name: name of the function.
        work: M, N and K, a multiple of 8.
        dtype: of x and W, "bfloat16" or "float16".
        schedule: how the product is cut; None for the default.
        arch: "sm_90a" and its like.
        bias: add a float32 [N].
        residual: add a float32 [M, N].
        out_dtype: of y: float32, bfloat16 or float16.

    Raises:
        ValueError: rows of x are not whole 16-byte pieces.
    """
    output = TileOutput(work, out_dtype, bias, residual)
    return _kernel(name, output, dtype, schedule, arch)


@made_once
def tile_gated_linear(
    name: str,
    work: LinearWorkload,
    dtype: str,
    schedule: TileSchedule | None = None,
    *,
    arch: str,
    activation: str,
    out_dtype: str | None = None,
) -> tvm.tirx.PrimFunc:
    """Kernel for y[M,I] = act(x @ W[:I].T) * (x @ W[I:].T); arguments x [M, K], packed w of W [2I, K], y.

    Args:
        name: name of the function.
        work: M, N = 2I, I a multiple of 16, and K of 8; ``gated``.
        dtype: of x and W, "bfloat16" or "float16".
        schedule: how the product is cut; None for the default.
        arch: "sm_90a" and its like.
        activation: "silu" or "gelu_tanh".
        out_dtype: of y; None for ``dtype``.

    Raises:
        ValueError: rows of x are not whole 16-byte pieces, or W's halves not whole packed tiles.
    """
    if work.features % (2 * TILE_ROWS):
        raise ValueError(f"a gated weight needs a multiple of {2 * TILE_ROWS} rows, not {work.features}")
    output = TileOutput(work, out_dtype or dtype, activation=activation)
    return _kernel(name, output, dtype, schedule, arch)


def _kernel(name: str, output: TileOutput, dtype: str, schedule: TileSchedule | None, arch: str) -> tvm.tirx.PrimFunc:
    work = output.work
    if work.depth % 8:
        raise ValueError(f"rows of x must be a multiple of 8 elements, not {work.depth}")
    cut = schedule or default_tile_schedule(work, arch)
    emit = emit_wgmma_tiles if has_wgmma(arch) else emit_mma_tiles

    def body(x: Buffer, w: Buffer, *rest: Buffer) -> None:
        emit(x, w, rest, output, cut)

    args = [
        Arg("x", (work.rows, work.depth), dtype),
        Arg("w", fragment_shape(work.features, work.depth), dtype),
        *output.args(),
    ]
    return tag(kernel(name, args, body), work)
