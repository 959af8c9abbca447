"""Each row through its own expert's weight, on the CPU: weights packed a panel at a time, as in linear.py.

A task holds one panel of one expert and takes all rows routed to it, so a weight comes from memory once a call and not
at all if nobody needs it. Sums run over k in order: a row's result does not depend on which other rows there are.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear_schedule import packed_shape
from dspark_compiler.schedules.tir import Arg, Buffer, kernel, local, made_once, vector, when
from dspark_compiler.schedules.vector_math import load_weight


@made_once
def expert_linear(
    name: str,
    rows: int,
    experts: int,
    features: int,
    depth: int,
    isa: VectorIsa,
    *,
    weight_dtype: str = "float32",
) -> tvm.tirx.PrimFunc:
    """y[r] = x[r] @ W[expert[r]].T; arguments x [R, K], packed W [E, ceil(N/P), K, P], expert int64 [R], y [R, N]."""
    panels, _, width = packed_shape(features, depth, isa)

    def body(x: Buffer, w: Buffer, expert: Buffer, y: Buffer) -> None:
        with T.parallel(0, experts * panels) as task:
            own, panel = T.Bind(task // panels), T.Bind(task % panels)
            with T.serial(0, rows) as row, when(expert[row] == T.cast(own, "int64")):
                acc = local(width)
                with vector(width) as lane:
                    T.buffer_store(acc, T.float32(0.0), [lane])
                with T.serial(0, depth) as k, vector(width) as lane:
                    product = x[row, k] * load_weight(w, [own, panel, k, lane])
                    T.buffer_store(acc, acc[lane] + product, [lane])
                with T.serial(0, width) as lane, when(panel * width + lane < features):
                    T.buffer_store(y, acc[lane], [row, panel * width + lane])

    args = [
        Arg("x", (rows, depth)),
        Arg("w", (experts, panels, depth, width), weight_dtype),
        Arg("expert", (rows,), "int64"),
        Arg("y", (rows, features)),
    ]
    return kernel(name, args, body)
