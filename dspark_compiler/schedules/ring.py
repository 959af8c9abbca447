"""Kernels on a drafter's rings [B,G,W,D]: the rows of new tokens go in, the last confirmed token's row comes out."""

from dataclasses import dataclass

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.slot_rows import RowShape, copy_row, fill_ring
from dspark_compiler.schedules.tir import Arg, Buffer, kernel, vector, when, widest_vector


@dataclass(frozen=True)
class RingRows:
    """Keys and values of confirmed or verified tokens, of a drafter's layers side by side, and the rings they go to.

    ``shape`` is that of a layer's keys and ring; of each of ``layers`` the keys come before the values.
    """

    shape: RowShape
    value_dim: int
    layers: int
    sequence: bool
    count: bool

    @property
    def columns(self) -> int:
        """A layer's in the projection."""
        return self.shape.heads * (self.shape.dim + self.value_dim)

    @property
    def control(self) -> tuple[str, ...]:
        """Names of the int32 inputs [b] that say where rows go."""
        return ("length", *(["sequence"] if self.sequence else []), *(["count"] if self.count else []))


def write_ring(
    name: str, shape: RowShape, isa: VectorIsa, *, sequence: bool = False, count: bool = False
) -> tvm.tirx.PrimFunc:
    """Row r's first count[r] rows go to places (length[r] + i) % W of ring sequence[r]; of more than W, the last.

    Arguments: rows [b,G,S,D], ring [B,G,W,D], length, [sequence], [count], int32 [b] each. Without ``sequence`` row r
    goes to ring r, without ``count`` all S rows are real.
    """
    control = ["length", *(["sequence"] if sequence else []), *(["count"] if count else [])]

    def body(rows: Buffer, ring: Buffer, *numbers: Buffer) -> None:
        of = dict(zip(control, numbers, strict=True))
        with T.serial(0, shape.rows) as row:
            seq = of["sequence"][row] if sequence else row
            fill_ring(shape, isa, ring, rows, (row, seq), of["length"][row], of["count"][row] if count else shape.width)

    args = [
        Arg("rows", (shape.rows, shape.heads, shape.width, shape.dim)),
        Arg("ring", (shape.batch, shape.heads, shape.places, shape.dim)),
        *(Arg(n, (shape.rows,), "int32") for n in control),
    ]
    return kernel(name, args, body)


def read_ring(name: str, shape: RowShape, isa: VectorIsa, *, sequence: bool = False) -> tvm.tirx.PrimFunc:
    """out[r] = the row of the last of length[r] tokens, of ring sequence[r] or else r; zeros where there is none.

    Arguments: ring [B,G,W,D], length, [sequence], int32 [b] each, out [b,G,1,D].
    """
    lanes = widest_vector(shape.dim, isa.lanes)

    def body(ring: Buffer, length: Buffer, *rest: Buffer) -> None:
        out = rest[-1]
        with T.serial(0, shape.rows) as row, T.serial(0, shape.heads) as head:
            seq = rest[0][row] if sequence else row
            with T.serial(0, shape.dim // lanes) as chunk, vector(lanes) as lane:
                T.buffer_store(out, T.float32(0.0), [row, head, 0, chunk * lanes + lane])
            with when(length[row] > 0):
                place = (length[row] - 1) % shape.places
                copy_row(shape, isa, out, (row, head, 0), ring, (seq, head, place))

    args = [
        Arg("ring", (shape.batch, shape.heads, shape.places, shape.dim)),
        Arg("length", (shape.rows,), "int32"),
        *([Arg("sequence", (shape.rows,), "int32")] if sequence else []),
        Arg("out", (shape.rows, shape.heads, 1, shape.dim)),
    ]
    return kernel(name, args, body)
