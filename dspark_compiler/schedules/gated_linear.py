"""The gated feed-forward entrance on the CPU in one kernel: act(x @ G.T) * (x @ U.T), G and U in one packed weight.

Shazeer 2020 (arXiv 2002.05202). A task streams a panel of G and the panel of U that meets it, one after the other or,
where the schedule covers two panels, side by side; the wide intermediate never goes through memory. Sums run over k in
order, as in linear.py.
"""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules import vector_math
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear import for_each_tile
from dspark_compiler.schedules.linear_schedule import (
    LinearSchedule,
    LinearWorkload,
    default_schedule,
    tag,
)
from dspark_compiler.schedules.quantized_panels import weight_panels
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, local, made_once, vector

Activation = Callable[[Expr], Expr]

_SQRT_2_OVER_PI = 0.7978845608028654


def silu(x: Expr) -> Expr:
    """The activation x * sigmoid(x)."""
    return x * vector_math.sigmoid(x)


def gelu_tanh(x: Expr) -> Expr:
    """The activation 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); Hendrycks & Gimpel 2016."""
    inner = T.float32(_SQRT_2_OVER_PI) * (x + T.float32(0.044715) * x * x * x)
    return T.float32(0.5) * x * (T.float32(1.0) + vector_math.tanh(inner))


ACTIVATIONS: dict[str, Activation] = {"silu": silu, "gelu_tanh": gelu_tanh}


def can_gate(features: int, isa: VectorIsa) -> bool:
    """Whether gate and up panels meet: each half must be whole panels."""
    return features % isa.panel == 0


@made_once
def gated_linear(
    name: str, work: LinearWorkload, isa: VectorIsa, schedule: LinearSchedule | None = None, *, activation: str
) -> tvm.tirx.PrimFunc:
    """Kernel for y[M,I] = act(x @ W[:I].T) * (x @ W[I:].T); arguments x [M, K], packed W [2I, K] (and its scales), y.

    Args:
        name: name of the function.
        work: M, N = 2I, K and the stored type of W, ``gated``; I a multiple of the panel width (``can_gate``).
        isa: vector width and registers of the target.
        schedule: how the loops are cut, one or two panels at a time; None for the default.
        activation: a key of ACTIVATIONS.
    """
    act = ACTIVATIONS[activation]
    features = work.features // 2
    panels = features // isa.panel
    cut = schedule or default_schedule(work, isa)
    source = weight_panels(work, isa)

    def body(x: Buffer, *rest: Buffer) -> None:
        *stored, y = rest
        weight = [*stored, *source.prepare(x)]

        def tile(panel: Expr, first: Expr, count: int) -> None:
            gates, ups = ([local(isa.panel) for _ in range(count)] for _ in range(2))
            pairs = [(panel, gates), (panel + panels, ups)]
            for part in (pairs,) if cut.panels == 2 else ([pair] for pair in pairs):
                sources, sums = zip(*part, strict=True)
                source.accumulate(sums, x, weight, sources, first, cut.prefetch)
            for i, (gate, up) in enumerate(zip(gates, ups, strict=True)):
                with vector(isa.panel) as lane:
                    T.buffer_store(y, act(gate[lane]) * up[lane], [first + i, panel * isa.panel + lane])

        with T.parallel(0, panels) as panel:
            for_each_tile(work.rows, cut.rows, lambda first, count: tile(panel, first, count))

    args = [
        Arg("x", (work.rows, work.depth)),
        *source.args,
        Arg("y", (work.rows, features)),
    ]
    return tag(kernel(name, args, body), work)
