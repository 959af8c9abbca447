"""Rotary positions on the CPU, read where the projection left them and written head by head for attention."""

from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T  # noqa: N812

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, vector, widest_vector

_MIN_PARALLEL = 16384  # elements below which waking threads costs more than it saves


@dataclass(frozen=True)
class RopeShape:
    """Sizes of one call; ``source`` is the shape of x as given."""

    rows: int  # b
    heads: int  # H
    width: int  # S
    dim: int  # D
    source: tuple[int, ...]  # [b*S, T], heads from column ``offset`` on; or [b, H, S, D]
    offset: int = 0


def rope(name: str, shape: RopeShape, isa: VectorIsa) -> tvm.tirx.PrimFunc:
    """y = x * cos + [-x2, x1] * sin; arguments x, cos [b,1,S,D], sin [b,1,S,D], y [b,H,S,D]."""
    half = shape.dim // 2
    lanes = widest_vector(half, isa.lanes)
    by_token = len(shape.source) == 2

    def body(x: Buffer, cos: Buffer, sin: Buffer, y: Buffer) -> None:
        def load(row: Expr, head: Expr, token: Expr, d: Expr) -> Expr:
            if by_token:
                return x[row * shape.width + token, shape.offset + head * shape.dim + d]
            return x[row, head, token, d]

        elements = shape.rows * shape.heads * shape.width * shape.dim
        loop = T.parallel if elements >= _MIN_PARALLEL else T.serial
        with loop(0, shape.rows * shape.width) as task:
            row, token = T.Bind(task // shape.width), T.Bind(task % shape.width)
            with T.serial(0, shape.heads) as head, T.serial(0, half // lanes) as chunk:
                # One expression for any number of tokens: contraction to multiply-adds must not depend on it.
                with vector(lanes) as lane:
                    d = chunk * lanes + lane
                    rotated = load(row, head, token, d + half) * sin[row, 0, token, d]
                    value = load(row, head, token, d) * cos[row, 0, token, d] - rotated
                    T.buffer_store(y, value, [row, head, token, d])
                with vector(lanes) as lane:
                    d = chunk * lanes + lane
                    rotated = load(row, head, token, d) * sin[row, 0, token, d + half]
                    value = load(row, head, token, d + half) * cos[row, 0, token, d + half] + rotated
                    T.buffer_store(y, value, [row, head, token, d + half])

    table = (shape.rows, 1, shape.width, shape.dim)
    args = [
        Arg("x", shape.source),
        Arg("cos", table),
        Arg("sin", table),
        Arg("y", (shape.rows, shape.heads, shape.width, shape.dim)),
    ]
    return kernel(name, args, body)
