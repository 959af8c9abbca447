"""What becomes of a tile's sums: bias and residual added, or gate and up joined, rounded and stored."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.memory import store_pair, store_quad, store_word
from dspark_compiler.schedules.cuda.mma import pack_pair
from dspark_compiler.schedules.cuda.threads import address, device, registers, run
from dspark_compiler.schedules.cuda.warp import swap_pairs
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, when

# x * sigmoid(z) with z of x; gelu_tanh: 0.5 x (1 + tanh u) = x sigmoid(2u), Hendrycks & Gimpel 2016.
_SIGMOID_OF = {"silu": "x", "gelu_tanh": "1.5957691216f * (x + 0.044715f * x * x * x)"}


@dataclass(frozen=True)
class TileOutput:
    """The end of a matmul kernel: y = sums (+ bias) (+ residual), or act(gate) * up where ``activation`` is set."""

    work: LinearWorkload
    out_dtype: str
    bias: bool = False
    residual: bool = False
    activation: str | None = None

    @property
    def features(self) -> int:
        """Columns of y."""
        return self.work.features // 2 if self.activation else self.work.features

    @property
    def is_wide(self) -> bool:
        """Whether ``store_wide`` serves."""
        return self.out_dtype == "float32" and self.features % 4 == 0

    def args(self) -> list[Arg]:
        """The kernel's arguments behind x and w: [bias], [residual], y."""
        bias = [Arg("bias", (self.features,))] if self.bias else []
        residual = [Arg("residual", (self.work.rows, self.features))] if self.residual else []
        return [*bias, *residual, Arg("y", (self.work.rows, self.features), self.out_dtype)]

    def store(self, sums: Buffer, buffers: Sequence[Buffer], row: Expr, column: Expr, columns: int) -> None:
        """Stores a thread's sums, float32[n/2] as wgmma.py lays them out.

        Args:
            sums: gate's sums before up's.
            buffers: those of ``args``.
            row: of sums[0] in y.
            column: of sums[0] in y.
            columns: of y the sums cover.
        """
        # Pairs of columns lie side by side in memory and start at multiples of two where rows do.
        width = 2 if self.features % 2 == 0 else 1
        for half in range(2):
            with when(row + 8 * half < self.work.rows):
                for j, i in product(range(columns // 8), range(0, 2, width)):
                    at, place = 4 * j + 2 * half + i, (row + 8 * half, column + 8 * j + i)
                    with nullcontext() if self.features % columns == 0 else when(place[1] < self.features):
                        values = self.values(sums, at, buffers, place, columns, width)
                        if width == 2:
                            self.put_pair(address(buffers[-1], *place), values)
                        else:
                            T.buffer_store(buffers[-1], T.cast(values[0], self.out_dtype), place)

    def store_wide(self, sums: Buffer, buffers: Sequence[Buffer], row: Expr, column: Expr, columns: int) -> None:
        """Stores as ``store`` does, four columns at once: neighbouring lanes swap what they have of two eights.

        For float32 rows of a multiple of four elements; ``columns`` are a multiple of 16.
        """
        # Odd lanes get the second eight's: 8 columns further on, from two before their own.
        start = column + T.bitwise_and(column // 2, 1) * 6
        for half, j in product(range(2), range(0, columns // 8, 2)):
            quad, place = registers(4), (row + 8 * half, start + 8 * j)
            swap_pairs(quad, *(v for k in range(2) for v in self._summed(sums, 4 * (j + k) + 2 * half, 2, columns)))
            inside = place[0] < self.work.rows
            with when(inside if self.features % columns == 0 else T.And(inside, place[1] < self.features)):
                values = self._with_extras([quad[i] for i in range(4)], buffers, place)
                store_quad(address(buffers[-1], *place), values)

    def values(
        self, sums: Buffer, at: int, buffers: Sequence[Buffer], place: tuple[Expr, Expr], columns: int, width: int = 2
    ) -> list[Expr]:
        """What y holds from ``place`` on, of sums[at] and its neighbour; the rest is as of ``store``.

        ``width`` is 2 where rows of y begin at multiples of two, else 1: without the neighbour.
        """
        return self._with_extras(self._summed(sums, at, width, columns), buffers, place)

    def _summed(self, sums: Buffer, at: int, width: int, columns: int) -> list[Expr]:
        values = [sums[at + i] for i in range(width)]
        if not self.activation:
            return values
        return [_activate(v, self.activation) * sums[at + i + columns // 2] for i, v in enumerate(values)]

    def _with_extras(self, values: list[Expr], buffers: Sequence[Buffer], place: tuple[Expr, Expr]) -> list[Expr]:
        if self.bias:
            values = [v + b for v, b in zip(values, _load(buffers[0], place[1:], len(values)), strict=True)]
        if self.residual:
            values = [v + r for v, r in zip(values, _load(buffers[-2], place, len(values)), strict=True)]
        return values

    def put_pair(self, pointer: Expr, values: Sequence[Expr]) -> None:
        """Stores two values as y has them, to any memory; the pointer is a multiple of their size."""
        if self.out_dtype == "float32":
            store_pair(pointer, values[0], values[1])
        else:
            store_word(pointer, pack_pair(values[0], values[1], self.out_dtype))


def _activate(value: Expr, activation: str) -> Expr:
    source = f"""
__device__ __forceinline__ float dspark_{activation}(float x) {{
  return __fdividef(x, 1.0f + __expf(-({_SIGMOID_OF[activation]})));
}}
"""
    return device(f"dspark_{activation}", value, source=source, returns="float32")


def _load(buffer: Buffer, index: tuple[Expr, ...], width: int) -> list[Expr]:
    if width == 1:
        return [buffer[index]]
    held = registers(width)
    source = f"""
__device__ __forceinline__ void dspark_load_{width}_floats(float* d, const void* p) {{
  float{width} v = *(const float{width}*)p; {" ".join(f"d[{i}] = v.{name};" for i, name in enumerate("xyzw"[:width]))}
}}
"""
    run(device(f"dspark_load_{width}_floats", address(held), address(buffer, *index), source=source))
    return [held[i] for i in range(width)]
