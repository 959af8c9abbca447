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
from dspark_compiler.schedules.cuda.threads import address, device, registers, run
from dspark_compiler.schedules.cuda.weight_forms import FRAGMENT_WORDS, TILE_WORDS, WeightForm, add_scaled
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
    """W as stored, with int4's scales and zeros, and the stripes of 16 features a block computes."""

    form: WeightForm
    codes: Buffer
    scales: Buffer | None
    zeros: Buffer | None
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
        self._scales = registers(self.slots * self._stripes, "uint32") if weights.scales is not None else None
        self._zeros = registers(self.slots * self._stripes, "uint32") if weights.zeros is not None else None

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
            for ring, source in ((self._scales, self._weights.scales), (self._zeros, self._weights.zeros)):
                if ring is not None:
                    _load_word(ring, place, address(source, stripe, tile, lane // 4))

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
            parts = [registers(4) for _ in column] if self._form.grouped else column
            if self._form.grouped:
                _clear([parts])
            for unit in range(self._form.units):
                a, start = self._codes, place * TILE_WORDS
                if self._form.quantized:
                    zeros = self._zeros[place] if self._zeros is not None else T.uint32(0)
                    a, start = registers(FRAGMENT_WORDS, "uint32"), 0
                    self._form.fragments(a, self._codes, place * TILE_WORDS, unit, zeros)
                for half in range(2):
                    for group, part in enumerate(parts):
                        b = self._input(slot, unit, group) + 2 * half
                        multiply_add(part, a, self._inputs, self._form.dtype, at=(0, start + 4 * half, b))
            if self._scales is not None:
                for acc, part in zip(column, parts, strict=True):
                    add_scaled(acc, part, self._scales[place], self._form.dtype)


def _clear(sums: Sequence[Sequence[Buffer]]) -> None:
    for acc in (acc for column in sums for acc in column):
        for i in range(4):
            T.buffer_store(acc, T.float32(0.0), [i])


def _load_word(target: Buffer, at: int, pointer: Expr) -> None:
    """Loads a uint32 that no kernel writes."""
    source = """
__device__ __forceinline__ void dspark_load_word(unsigned* d, const void* p) {
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(*d) : "l"(p));
}
"""
    run(device("dspark_load_word", address(target, at), pointer, source=source))
