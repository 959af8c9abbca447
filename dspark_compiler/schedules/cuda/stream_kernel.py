"""The kernel of streaming linear layers: arguments, launch, and what happens to sums before they are stored."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.fragments import TILE_DEPTH, TILE_ROWS
from dspark_compiler.schedules.cuda.late_norm import LateScales, late_norm_output, late_norm_parts
from dspark_compiler.schedules.cuda.launch_bounds import resident_blocks
from dspark_compiler.schedules.cuda.memory_reads import weight_float, written_float
from dspark_compiler.schedules.cuda.stream_inputs import GROUP, Inputs, staged_inputs, written_inputs
from dspark_compiler.schedules.cuda.stream_meeting import meet
from dspark_compiler.schedules.cuda.stream_norm import Norm
from dspark_compiler.schedules.cuda.stream_outputs import Outputs
from dspark_compiler.schedules.cuda.stream_schedule import StreamSchedule
from dspark_compiler.schedules.cuda.stream_tiles import Weights, Worker, stream_tiles
from dspark_compiler.schedules.cuda.threads import WARP, address, launch
from dspark_compiler.schedules.cuda.weight_forms import TILE_WORDS, WeightForm
from dspark_compiler.schedules.linear_schedule import LinearWorkload, tag
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_REGISTERS = 64 * 1024  # of a multiprocessor
_FEWEST = 32  # words of W a thread is given registers for, at least

Given = Mapping[str, Buffer]


@dataclass(frozen=True)
class Around:
    """What a kernel does besides the product; see ``stream_linear``."""

    bias: bool = False
    residual: bool = False
    every: tuple[int, int] = (1, 0)  # the residual's row r is (step * r + first)-th of what is given
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
            args.append(Arg("residual", (rows * around.every[0], features)))
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
        with launch((-(-stripes // cut.stripes),), cut.warps * WARP) as (block, thread), self._residence():
            places = [block * cut.stripes + j for j in range(cut.stripes)]
            if stripes % cut.stripes:
                # The last block has stripes to spare; it does the last one again.
                places = [T.min(place, stripes - 1) for place in places]
            outputs = Outputs(self.work.rows, cut.stripes, thread, cut.warps * WARP)
            first = block * (cut.stripes * TILE_ROWS)
            asked = self._weights_of(outputs, given, first)

            def inputs() -> Inputs:
                if self.around.residual:
                    step, start = self.around.every
                    asked["residual"] = outputs.early(
                        lambda row, place: written_float(
                            address(given["residual"], row * step + start, self._within(first + place))
                        )
                    )
                return self._inputs(given, thread, late)

            sums = stream_tiles(
                Weights(
                    self.form,
                    given["w"],
                    given["scale"] if self.form.group else None,
                    given["offset"] if self.form.offsets else None,
                    [place + part * stripes for part in range(self.parts) for place in places],
                ),
                inputs,
                Worker(thread // WARP, cut.warps, thread % WARP),
                cut.ahead,
            )
            for scales in late:
                scales.add_up()
            meet(sums, outputs, partial(self._store, given, asked, late, first))

    def _residence(self) -> AbstractContextManager[Any]:
        """With what is asked for early, many rows would take more registers, and leave room for fewer blocks."""
        if self.form.quantized or self.work.rows <= GROUP or not self.around.residual:
            return nullcontext()
        words = self.cut.ahead * self.cut.stripes * self.parts * TILE_WORDS
        return resident_blocks(max(1, _REGISTERS // (self.cut.warps * WARP * 2 * max(words, _FEWEST))))

    def _weights_of(self, outputs: Outputs, given: Given, first: Expr) -> dict[str, Buffer]:
        """What belongs to a feature, of each of a thread's values."""
        names = ["bias"] * self.around.bias + ["next_weight"] * self.around.feeds_norm
        places = {name: (given[name], 0) for name in names}
        if self._scaled:
            places |= {f"scale {part}": (given["scale"], part * self.output.shape[1]) for part in range(self.parts)}

        def asked(weight: Buffer, start: int) -> Buffer:
            return outputs.early(lambda _, place: weight_float(address(weight, self._within(first + place) + start)))

        return {name: asked(*place) for name, place in places.items()}

    @property
    def _scaled(self) -> bool:
        """Whether a scale belongs to each row of W."""
        return self.form.quantized and not self.form.group

    @property
    def _ragged(self) -> bool:
        """Whether the last block has features to spare."""
        return self.output.shape[1] % (TILE_ROWS * self.cut.stripes) > 0

    def _within(self, feature: Expr) -> Expr:
        """The feature, or the last one instead of one that is not there."""
        return T.min(feature, self.output.shape[1] - 1) if self._ragged else feature

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
        self,
        given: Given,
        asked: Given,
        late: Sequence[LateScales],
        first: Expr,
        sums: Sequence[Expr],
        number: int,
        row: Expr,
        place: Expr,
    ) -> None:
        feature = first + place
        with when(feature < self.output.shape[1]) if self._ragged else nullcontext():
            values = [T.Bind(total) for total in sums]
            if self._scaled:
                values = [value * asked[f"scale {part}"][number] for part, value in enumerate(values)]
            for scales in late:
                values = [value * scales[row] for value in values]
            value = self.combine(values)
            for name in ["bias"] * self.around.bias + ["residual"] * self.around.residual:
                value = value + asked[name][number]
            value = T.Bind(value)
            T.buffer_store(given["y"], T.cast(value, self.output.dtype), [row, feature])
            if self.around.feeds_norm:
                weight = asked["next_weight"][number]
                late_norm_output(value, weight, row, feature, given["product"], given["product_squares"])
