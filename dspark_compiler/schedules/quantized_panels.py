"""Panels of quantized weights, widened to float32 in registers: codes, a scale for each group of columns, no table.

Each group of columns is summed by itself and scaled once, W = codes * scale (+ offset) being linear in both; sums and
groups run over k in order, so that as for plain weights a row's result does not depend on the number of rows.
"""

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.cache_storage import E4M3FN, INT8
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear_schedule import LinearWorkload, packed_shape
from dspark_compiler.schedules.quantized_codes import NIBBLES, ZERO
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, local, prefetch, vector
from dspark_compiler.schedules.vector_math import load_weight
from dspark_compiler.schedules.weight_panels import PlainPanels, WeightPanels, clear


def weight_panels(work: LinearWorkload, isa: VectorIsa) -> WeightPanels:
    """The panels of a workload, by the type of its weights."""
    form = WeightFormat.parse(work.weight_dtype)
    return PlainPanels(work, isa) if form is None else QuantizedPanels(work, isa, form)


class QuantizedPanels:
    """Codes [panels, K, P] of a byte, or words [panels, K/8, P] of eight codes; scales and offsets [panels, K/g, P]."""

    def __init__(self, work: LinearWorkload, isa: VectorIsa, form: WeightFormat) -> None:
        assert work.depth % form.columns(work.depth) == 0
        self._work, self._isa, self._form = work, isa, form
        self._storage = E4M3FN if form.codes == "float8_e4m3" else INT8
        self._columns = form.columns(work.depth)
        # Steps of k that one load of a vector of codes serves.
        self._step = NIBBLES if form.codes == "int4" else 1
        assert self._columns % self._step == 0

    @property
    def args(self) -> list[Arg]:
        """See WeightPanels."""
        work, isa = self._work, self._isa
        stored = "uint32" if self._form.codes == "int4" else self._storage.dtype
        factors = packed_shape(work.features, self._form.groups(work.depth), isa)
        args = [
            Arg("codes", packed_shape(work.features, work.depth // self._step, isa), stored),
            Arg("scales", factors, work.scale_dtype),
        ]
        return [*args, Arg("offsets", factors)] if self._form.offsets else args

    def prepare(self, x: Buffer) -> Sequence[Buffer]:
        """The rows as codes are multiplied by, and their sums over each group, which offsets are."""
        made = [self._shifted(x)] if self._form.codes == "int4" else []
        return [*made, self._totals(x)] if made or self._form.offsets else made

    def _shifted(self, x: Buffer) -> Buffer:
        """x[row, k] over the power of two that the code of k is multiplied by where it lies in its word."""
        rows, depth = self._work.rows, self._work.depth
        shifted = T.alloc_buffer((rows, depth), "float32", scope="global")
        with T.serial(0, rows) as row, T.serial(0, depth // NIBBLES) as word:
            for j in range(NIBBLES):
                k = word * NIBBLES + j
                T.buffer_store(shifted, x[row, k] * T.float32(1.0 / _place(j)), [row, k])
        return shifted

    def _totals(self, x: Buffer) -> Buffer:
        rows, groups = self._work.rows, self._form.groups(self._work.depth)
        totals = T.alloc_buffer((rows, groups), "float32", scope="global")
        with T.serial(0, rows) as row, T.serial(0, groups) as group:
            acc = local(1)
            T.buffer_store(acc, T.float32(0.0), [0])
            with T.serial(0, self._columns) as k:
                T.buffer_store(acc, acc[0] + x[row, group * self._columns + k], [0])
            T.buffer_store(totals, acc[0], [row, group])
        return totals

    def accumulate(
        self,
        sums: Sequence[Sequence[Buffer]],
        x: Buffer,
        weight: Sequence[Buffer],
        panels: Sequence[Expr],
        first: Expr,
        ahead: int,
    ) -> None:
        """See WeightPanels."""
        codes, scales, *rest = list(weight)
        offsets: Buffer = rest.pop(0) if self._form.offsets else None
        totals: Buffer = rest.pop() if rest else None
        factors: Buffer = rest.pop() if rest else x
        width = self._isa.panel
        parts = [[local(width) for _ in column] for column in sums]
        clear(sums, self._isa)
        with T.serial(0, self._form.groups(self._work.depth)) as group:
            clear(parts, self._isa)
            with T.serial(0, self._columns // self._step) as step:
                at = group * (self._columns // self._step) + step
                for panel, column in zip(panels, parts, strict=True):
                    if ahead:
                        prefetch(codes, (panel, at + ahead, 0), width)
                    self._multiply(column, factors, codes, panel, at, first)
            for panel, totalled, part in zip(panels, sums, parts, strict=True):
                for i, acc in enumerate(totalled):
                    with vector(width) as lane:
                        value = part[i][lane]
                        if self._form.codes == "int4":
                            value = value - T.float32(ZERO) * totals[first + i, group]
                        value = acc[lane] + value * load_weight(scales, [panel, group, lane])
                        if offsets is not None:
                            value = value + totals[first + i, group] * load_weight(offsets, [panel, group, lane])
                        T.buffer_store(acc, value, [lane])

    def _multiply(self, column: Sequence[Buffer], x: Buffer, codes: Buffer, panel: Expr, at: Expr, first: Expr) -> None:
        """The sums column[i] += x[first+i, k] * code of k, for the columns k of one step."""
        for j in range(self._step):
            for i, acc in enumerate(column):
                with vector(self._isa.panel) as lane:
                    stored = codes[panel, at, lane]
                    code = self._storage.load(stored) if self._step == 1 else _nibble(stored, j)
                    T.buffer_store(acc, acc[lane] + x[first + i, at * self._step + j] * code, [lane])


def _nibble(word: Expr, number: int) -> Expr:
    """One of the eight codes of a word, plus ZERO and times its place: what a mask leaves, converted."""
    last = number == NIBBLES - 1  # would be taken for a negative number where it lies
    bits = word >> T.uint32(28) if last else word & T.uint32(15 << 4 * number)
    return T.cast(T.cast(bits, "int32"), "float32")


def _place(number: int) -> float:
    """The power of two that ``_nibble`` leaves a code multiplied by."""
    return 1.0 if number == NIBBLES - 1 else 16.0**number
