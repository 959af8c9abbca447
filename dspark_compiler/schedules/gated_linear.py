"""The gated feed-forward entrance on the CPU in one kernel: act(x @ G.T) * (x @ U.T), G and U stacked in one packed weight.

Shazeer 2020 (arXiv 2002.05202). A task streams a panel of G and the panel of U that meets it, so the wide intermediate
never goes through memory. Sums run over k in order, as in linear.py.
"""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T  # noqa: N812

from dspark_compiler.schedules import vector_math
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear import packed_shape, tile_rows
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, local, vector

Activation = Callable[[Expr], Expr]

_SQRT_2_OVER_PI = 0.7978845608028654


def silu(x: Expr) -> Expr:
    """x * sigmoid(x)."""
    return x * vector_math.sigmoid(x)


def gelu_tanh(x: Expr) -> Expr:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); Hendrycks & Gimpel 2016."""
    inner = T.float32(_SQRT_2_OVER_PI) * (x + T.float32(0.044715) * x * x * x)
    return T.float32(0.5) * x * (T.float32(1.0) + vector_math.tanh(inner))


ACTIVATIONS: dict[str, Activation] = {"silu": silu, "gelu_tanh": gelu_tanh}


def can_gate(features: int, isa: VectorIsa) -> bool:
    """Whether gate and up panels meet: each half must be whole panels."""
    return features % isa.panel == 0


def gated_linear(
    name: str,
    rows: int,
    features: int,
    depth: int,
    isa: VectorIsa,
    *,
    activation: str,
    weight_dtype: str = "float32",
) -> tvm.tirx.PrimFunc:
    """y[M,I] = act(x @ W[:I].T) * (x @ W[I:].T); arguments x [M, K], packed W [2I, K], y.

    Args:
        name: name of the function.
        rows: M.
        features: I, a multiple of the panel width (``can_gate``).
        depth: K.
        isa: vector width and registers of the target.
        activation: a key of ACTIVATIONS.
        weight_dtype: float32, float16 or uint16 (bfloat16 bits).
    """
    act = ACTIVATIONS[activation]
    panels = features // isa.panel
    height = tile_rows(rows, max(1, isa.max_rows // 2))

    def body(x: Buffer, w: Buffer, y: Buffer) -> None:
        def tile(panel: Expr, first: Expr, count: int) -> None:
            gates, ups = ([local(isa.panel) for _ in range(count)] for _ in range(2))
            for acc in (*gates, *ups):
                with vector(isa.panel) as lane:
                    T.buffer_store(acc, T.float32(0.0), [lane])
            with T.serial(0, depth) as k:
                for sums, source in ((gates, panel), (ups, panel + panels)):
                    for i, acc in enumerate(sums):
                        with vector(isa.panel) as lane:
                            product = x[first + i, k] * vector_math.load_weight(w, [source, k, lane])
                            T.buffer_store(acc, acc[lane] + product, [lane])
            for i, (gate, up) in enumerate(zip(gates, ups, strict=True)):
                with vector(isa.panel) as lane:
                    T.buffer_store(y, act(gate[lane]) * up[lane], [first + i, panel * isa.panel + lane])

        with T.parallel(0, panels) as panel:
            with T.serial(0, rows // height) as block:
                tile(panel, block * height, height)
            if rows % height:
                tile(panel, rows - rows % height, rows % height)

    args = [
        Arg("x", (rows, depth)),
        Arg("w", packed_shape(2 * features, depth, isa), weight_dtype),
        Arg("y", (rows, features)),
    ]
    return kernel(name, args, body)
