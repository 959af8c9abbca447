"""What becomes of a tile's sums: bias and residual added, or gate and up joined, rounded and stored."""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.memory import store_pair, store_word
from dspark_compiler.schedules.cuda.mma import pack_pair
from dspark_compiler.schedules.cuda.threads import address, device, registers, run
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
                for j in range(columns // 8):
                    for i in range(0, 2, width):
                        at, place = 4 * j + 2 * half + i, column + 8 * j + i
                        if self.features % columns == 0:
                            self._store(sums, at, buffers, row + 8 * half, place, width, columns)
                        else:
                            with when(place < self.features):
                                self._store(sums, at, buffers, row + 8 * half, place, width, columns)

    def _store(
        self, sums: Buffer, at: int, buffers: Sequence[Buffer], row: Expr, column: Expr, width: int, columns: int
    ) -> None:
        values = [sums[at + i] for i in range(width)]
        if self.activation:
            values = [_activate(v, self.activation) * sums[at + i + columns // 2] for i, v in enumerate(values)]
        if self.bias:
            values = [v + b for v, b in zip(values, _load(buffers[0], (column,), width), strict=True)]
        if self.residual:
            values = [v + r for v, r in zip(values, _load(buffers[-2], (row, column), width), strict=True)]
        y = buffers[-1]
        if width == 1:
            T.buffer_store(y, T.cast(values[0], self.out_dtype), [row, column])
        elif self.out_dtype == "float32":
            store_pair(address(y, row, column), values[0], values[1])
        else:
            store_word(address(y, row, column), pack_pair(values[0], values[1], self.out_dtype))


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
    pair = registers(2)
    source = """
__device__ __forceinline__ void dspark_load_pair(float* d, const void* p) {
  float2 v = *(const float2*)p; d[0] = v.x; d[1] = v.y;
}
"""
    run(device("dspark_load_pair", address(pair), address(buffer, *index), source=source))
    return [pair[0], pair[1]]
