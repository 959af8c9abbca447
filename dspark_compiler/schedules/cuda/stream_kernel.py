"""The kernel of streaming linear layers: arguments, launch, and what happens to sums before they are stored."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, TILE_ROWS
from dspark_compiler.schedules.cuda.late_norm import LateScales, late_norm_output, late_norm_parts
from dspark_compiler.schedules.cuda.memory_reads import written_float
from dspark_compiler.schedules.cuda.stream_inputs import Inputs, staged_inputs, written_inputs
from dspark_compiler.schedules.cuda.stream_meeting import meet
from dspark_compiler.schedules.cuda.stream_norm import Norm
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule
from dspark_compiler.schedules.cuda.stream_tiles import Weights, Worker, stream_tiles
from dspark_compiler.schedules.cuda.threads import WARP, address, launch
from dspark_compiler.schedules.cuda.weight_forms import WeightForm
from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_FED = ("next_weight", "product", "product_squares")

Given = Mapping[str, Buffer]


@dataclass(frozen=True)
class Around:
    """What a kernel does besides the product; see ``stream_linear``."""

    bias: bool = False
    residual: bool = False
    norm_eps: float | None = None
    late_norm: bool = False
    feeds_norm: bool = False


@dataclass(frozen=True)
class StreamKernel:
    """One kernel; W's rows are ``parts`` weights of as many rows as y has features, one after the other."""

    work: LinearWorkload
    form: WeightForm
    cut: StreamSchedule
    around: Around
    output: Arg
    parts: int
    combine: Callable[[Sequence[Expr]], Expr]  # a feature's sums, one of each part

    def build(self, name: str) -> tvm.tirx.PrimFunc:
        """The kernel as a function, tagged with its workload."""
        return tag(kernel(name, self._args(), self._body), self.work)

    def _args(self) -> list[Arg]:
        (rows, features), around, depth = self.output.shape, self.around, self.work.depth
        args = [Arg("x", (rows, depth), "float32" if self._early_norm else self.form.dtype), *self.form.args()]
        if around.bias:
            args.append(Arg("bias", (features,)))
        if around.residual:
            args.append(Arg("residual", (rows, features)))
        if self._early_norm:
            args.append(Arg("norm_weight", (depth,)))
        elif around.norm_eps is not None:
            args.append(Arg("squares", (rows, late_norm_parts(depth))))
        if around.feeds_norm:
            args.append(Arg("next_weight", (features,)))
        args.append(self.output)
        if around.feeds_norm:
            args.append(Arg("product", (rows, features), self.form.dtype))
            args.append(Arg("product_squares", (rows, late_norm_parts(features))))
        return args

    @property
    def _early_norm(self) -> bool:
        return self.around.norm_eps is not None and not self.around.late_norm

    def _body(self, *buffers: Buffer) -> None:
        given = dict(zip([arg.name for arg in self._args()], buffers, strict=True))
        cut, stripes = self.cut, -(-self.output.shape[1] // TILE_ROWS)
        late: list[LateScales] = []
        with launch((-(-stripes // cut.stripes),), cut.warps * WARP) as (block, thread):
            places = [block * cut.stripes + j for j in range(cut.stripes)]
            if stripes % cut.stripes:
                # The last block has stripes to spare; it does the last one again.
                places = [T.min(place, stripes - 1) for place in places]
            sums = stream_tiles(
                Weights(
                    self.form,
                    given["w"],
                    given["scale"] if self.form.group else None,
                    given["offset"] if self.form.offsets else None,
                    [place + part * stripes for part in range(self.parts) for place in places],
                ),
                lambda: self._inputs(given, thread, late),
                Worker(thread // WARP, cut.warps, thread % WARP),
                cut.ahead,
            )
            for scales in late:
                scales.add_up()
            store = partial(self._store, given, late, block * (cut.stripes * TILE_ROWS))
            meet(sums, self.work.rows, cut.stripes, cut.warps, thread, store)

    def _inputs(self, given: Given, thread: Expr, late: list[LateScales]) -> Inputs:
        x, around, warps = given["x"], self.around, self.cut.warps
        padded = self.form.args()[0].shape[1] * self.form.units * TILE_DEPTH
        if around.norm_eps is not None:
            if not around.late_norm:
                return Norm(x, given["norm_weight"], around.norm_eps, self.form.dtype).inputs(padded, thread, warps)
            late.append(LateScales(given["squares"], self.work.depth, around.norm_eps, thread, warps))
        if self.form.quantized and self.work.rows == 1:
            return staged_inputs(x, padded, thread, warps * WARP)
        return written_inputs(x, padded)

    def _store(
        self, given: Given, late: Sequence[LateScales], first: Expr, sums: Sequence[Expr], row: Expr, place: Expr
    ) -> None:
        feature, features = first + place, self.output.shape[1]
        with when(feature < features) if features % (TILE_ROWS * self.cut.stripes) else nullcontext():
            values = [T.Bind(total) for total in sums]
            if self.form.quantized and not self.form.group:
                values = [value * given["scale"][feature + part * features] for part, value in enumerate(values)]
            for scales in late:
                values = [value * scales[row] for value in values]
            value = self.combine(values)
            if self.around.bias:
                value = value + given["bias"][feature]
            if self.around.residual:
                value = value + written_float(address(given["residual"], row, feature))
            value = T.Bind(value)
            T.buffer_store(given["y"], T.cast(value, self.output.dtype), [row, feature])
            if self.around.feeds_norm:
                late_norm_output(value, row, feature, features, *(given[name] for name in _FED))
