"""The sums of a streaming linear kernel: W from memory straight into tensor core registers, every byte of it once.

A warp takes W as the wide operand of mma.m16n8k16 (A, 16 features) and x as the narrow one (B, 8 rows), so that one row
of x costs what eight do: the time of W's way from memory. It keeps the tiles of several steps under way in registers.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.mma import multiply_add
from dspark_compiler.schedules.cuda.stream_inputs import X_WORDS, Inputs
from dspark_compiler.schedules.cuda.threads import registers
from dspark_compiler.schedules.cuda.weight_forms import FRAGMENT_WORDS, TILE_WORDS, WeightForm, add_scaled, fill_ones
from dspark_compiler.schedules.tir import Buffer, Expr, when

_X_AHEAD = 32  # registers at most of x under way


@dataclass(frozen=True)
class Worker:
    """One of the warps that share the depth of a block's stripes."""

    index: Expr
    count: int
    lane: Expr


@dataclass(frozen=True)
class Weights:
    """W as stored, with the scales and offsets of tiles, and the stripes of 16 features a block computes."""

    form: WeightForm
    codes: Buffer
    scales: Buffer | None
    offsets: Buffer | None
    stripes: Sequence[Expr]


def stream_tiles(weights: Weights, inputs: Callable[[], Inputs], worker: Worker, ahead: int) -> list[list[Buffer]]:
    """This worker's part of x @ W.T: for each stripe of 16 features and each 8 rows of x a C fragment, float32[4].

    Tile i of a stripe is the (i mod count)-th worker's, in order. The first loads of W go out before
    ``await_previous``, which ``inputs`` is called after.
    """
    stream = _Stream(weights, worker, ahead)
    for step in range(stream.slots):
        with stream.having(step):
            stream.load_weights(step, step)
    release_next()
    await_previous()
    stream.take(inputs())
    for step in range(stream.x_slots):
        with stream.having(step):
            stream.load_inputs(step, step)
    stream.run()
    return stream.sums


class _Stream:
    """A worker's registers: rings of tiles and of x under way, and the sums."""

    def __init__(self, weights: Weights, worker: Worker, ahead: int) -> None:
        self._weights, self._form, self._worker = weights, weights.form, worker
        self.tiles = int(weights.codes.shape[1])
        self.whole, self._rest = divmod(self.tiles, worker.count)  # steps of every worker, and workers with one more
        self.steps = self.whole + (self._rest > 0)
        self.slots = min(ahead, self.steps)
        self._stripes = len(weights.stripes)
        self._codes = registers(self.slots * self._stripes * TILE_WORDS, "uint32")
        factors = self.slots * self._stripes * self._form.groups
        self._scales = registers(factors, "uint32") if weights.scales is not None else None
        self._offsets = registers(factors, "uint32") if weights.offsets is not None else None
        if weights.offsets is not None:
            self._ones = registers(4, "uint32")
            fill_ones(self._ones, self._form.dtype)

    def having(self, step: int) -> AbstractContextManager[None]:
        """Inside are only the workers that have this step."""
        return when(self._worker.index < self._rest) if step == self.whole else nullcontext()

    def _tile(self, step: Expr) -> Expr:
        return step * self._worker.count + self._worker.index

    def load_weights(self, step: Expr, slot: int) -> None:
        """Asks for the step's tiles of all stripes."""
        tile, lane = self._tile(step), self._worker.lane
        for j, stripe in enumerate(self._weights.stripes):
            place = slot * self._stripes + j
            self._form.load(self._codes, place * TILE_WORDS, self._weights.codes, stripe, tile, lane)
            for ring, source in ((self._scales, self._weights.scales), (self._offsets, self._weights.offsets)):
                if ring is not None:
                    self._form.load_factors(ring, place * self._form.groups, source, stripe, tile, lane)

    def take(self, x: Inputs) -> None:
        """Takes x; asks for it as early as there are registers for it, not at all if it is near."""
        self._x = x
        words = self._form.units * x.groups * X_WORDS
        fitting = [n for n in range(1, self.slots + 1) if self.slots % n == 0 and n * words <= _X_AHEAD]
        self.x_slots = 0 if x.near else max(fitting, default=1)
        self._inputs = registers(max(self.x_slots, 1) * words, "uint32")
        self.sums = [[registers(4) for _ in range(x.groups)] for _ in range(self._stripes)]
        _clear(self.sums)

    def load_inputs(self, step: Expr, slot: int) -> None:
        """Asks for the step's x."""
        row, octet = self._worker.lane // 4, self._worker.lane % 4
        for unit in range(self._form.units):
            for group in range(self._x.groups):
                tile = self._tile(step) * self._form.units + unit
                self._x.load(self._inputs, self._input(slot, unit, group), tile, group, row, octet)

    def _input(self, slot: int, unit: int, group: int) -> int:
        return ((slot % max(self.x_slots, 1) * self._form.units + unit) * self._x.groups + group) * X_WORDS

    def run(self) -> None:
        """All steps, each followed by loads into what it used: a loop while every worker has more, then the rest."""
        rounds = max(self.whole // self.slots - 1, 0)
        if rounds:
            with T.serial(0, rounds) as turn:
                for slot in range(self.slots):
                    step = turn * self.slots + slot
                    self.multiply(step, slot)
                    self.load_weights(step + self.slots, slot)
                    if self.x_slots:
                        self.load_inputs(step + self.x_slots, slot)
        for step in range(rounds * self.slots, self.steps):
            with self.having(step):
                self.multiply(step, step % self.slots)
            self._reload(self.load_weights, step, self.slots)
            self._reload(self.load_inputs, step, self.x_slots)

    def _reload(self, load: Callable[[Expr, int], None], step: int, ahead: int) -> None:
        if ahead and step + ahead < self.steps:
            with self.having(step + ahead):
                load(step + ahead, step % self.slots)

    def multiply(self, step: Expr, slot: int) -> None:
        """Adds the step's products to the sums."""
        if not self.x_slots:
            self.load_inputs(step, slot)
        for j, column in enumerate(self.sums):
            place = slot * self._stripes + j
            if self._scales is None:
                self._add(column, slot, place, range(self._form.units))
                continue
            units = self._form.units // self._form.groups
            for group in range(self._form.groups):
                self._add_group(column, slot, place, range(group * units, (group + 1) * units), group)

    def _add_group(self, column: Sequence[Buffer], slot: int, place: int, units: range, group: int) -> None:
        """Adds the products of units that share a scale."""
        assert self._scales is not None
        parts, at = [registers(4) for _ in column], place * self._form.groups + group
        _clear([parts])
        self._add(parts, slot, place, units)
        for acc, part in zip(column, parts, strict=True):
            add_scaled(acc, part, self._scales[at])
        if self._offsets is None:
            return
        # W's offset times the sum of x's columns, which comes out of a product with ones where it is needed.
        totals = [registers(4) for _ in column]
        _clear([totals])
        for unit in units:
            for half in range(2):
                self._multiply(totals, self._ones, 0, slot, unit, half)
        for acc, total in zip(column, totals, strict=True):
            add_scaled(acc, total, self._offsets[at])

    def _add(self, sums: Sequence[Buffer], slot: int, place: int, units: range) -> None:
        """Adds the products of some units of a tile to the sums of all groups of rows."""
        for unit in units:
            a, start = self._codes, place * TILE_WORDS
            if self._form.quantized:
                a, start = registers(FRAGMENT_WORDS, "uint32"), 0
                self._form.fragments(a, self._codes, place * TILE_WORDS, unit)
            for half in range(2):
                self._multiply(sums, a, start + 4 * half, slot, unit, half)

    def _multiply(self, sums: Sequence[Buffer], a: Buffer, at: int, slot: int, unit: int, half: int) -> None:
        """Adds an A fragment's products with half of a unit of x."""
        for group, acc in enumerate(sums):
            b = self._input(slot, unit, group) + 2 * half
            multiply_add(acc, a, self._inputs, self._form.dtype, at=(0, at, b))


def _clear(sums: Sequence[Sequence[Buffer]]) -> None:
    for acc in (acc for column in sums for acc in column):
        for i in range(4):
            T.buffer_store(acc, T.float32(0.0), [i])
