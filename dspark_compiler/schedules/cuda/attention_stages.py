"""How few tokens' attention gets slots into shared memory: as products read them, or as codes that are widened there.

Codes are small whole numbers or short floats, exact in two bytes: products are of codes, a key's scale multiplies its
scores and a value's its weight, both float32.
"""

from abc import ABC, abstractmethod
from contextlib import nullcontext

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cache_storage import INT8
from dspark_compiler.schedules.cuda.attention_rows import (
    ELEMENTS,
    PIECE,
    Problem,
    SlotRows,
    row_bytes,
)
from dspark_compiler.schedules.cuda.attention_warp import Scales
from dspark_compiler.schedules.cuda.cache_codes import stored_name
from dspark_compiler.schedules.cuda.memory import copy_from
from dspark_compiler.schedules.cuda.octets import OCTET, widen_octet
from dspark_compiler.schedules.cuda.threads import address
from dspark_compiler.schedules.gpu.cache_args import scale_name
from dspark_compiler.schedules.tir import Buffer, Expr, when, widest_vector

STEP = 16  # slots of a stage
_ROWS = tuple[Expr, Expr, Scales | None]  # where keys and values begin, and their scales


class Stages(ABC):
    """The stages of a line's ring: ``workers`` threads share the work on each."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.key_row, self.value_row = row_bytes(problem.shape.head_dim), row_bytes(problem.shape.value_dim)

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Shared memory of a stage."""

    @property
    @abstractmethod
    def opened(self) -> int:
        """Shared memory besides that each line needs."""

    @abstractmethod
    def fetch(self, rows: SlotRows, memory: Buffer, at: Expr, first: Expr, worker: tuple[Expr, int]) -> None:
        """Starts copying slots from ``first`` on into the stage at memory[at:]."""

    @abstractmethod
    def open(self, memory: Buffer, at: Expr, opened: Expr, worker: tuple[Expr, int]) -> _ROWS:
        """Makes rows of what has arrived at memory[at:]; those at memory[opened:] hold once all workers are done."""


def stages_of(problem: Problem) -> Stages:
    """The kind that the cache asks for."""
    return _Codes(problem) if problem.form.storage.scaled else _Plain(problem)


class _Plain(Stages):
    """Rows as they are."""

    @property
    def bytes(self) -> int:
        return STEP * (self.key_row + self.value_row)

    @property
    def opened(self) -> int:
        return 0

    def fetch(self, rows: SlotRows, memory: Buffer, at: Expr, first: Expr, worker: tuple[Expr, int]) -> None:
        rows.copy("k", memory, at, first, STEP, *worker)
        rows.copy("v", memory, at + STEP * self.key_row, first, STEP, *worker)

    def open(self, memory: Buffer, at: Expr, opened: Expr, worker: tuple[Expr, int]) -> _ROWS:
        return at, at + STEP * self.key_row, None


class _Codes(Stages):
    """Codes of keys, codes of values, scales of keys, scales of values."""

    @property
    def _dims(self) -> tuple[tuple[str, int], tuple[str, int]]:
        return ("k", self.problem.shape.head_dim), ("v", self.problem.shape.value_dim)

    @property
    def _scales(self) -> int:
        """Where scales begin."""
        return STEP * sum(dim for _, dim in self._dims)

    @property
    def bytes(self) -> int:
        return self._scales + 2 * STEP * 4

    @property
    def opened(self) -> int:
        return STEP * (self.key_row + self.value_row)

    def fetch(self, rows: SlotRows, memory: Buffer, at: Expr, first: Expr, worker: tuple[Expr, int]) -> None:
        number, workers = worker
        for index, (name, dim) in enumerate(self._dims):
            piece, begin = widest_vector(dim, PIECE), index * STEP * self._dims[0][1]
            pieces = dim // piece
            for start in range(0, STEP * pieces, workers):
                unit = T.Bind(number + start)
                inside = nullcontext() if start + workers <= STEP * pieces else when(unit < STEP * pieces)
                with inside:
                    slot, column = T.Bind(first + unit // pieces), T.Bind(unit % pieces * piece)
                    place = rows.place((f"{name}_cache", f"{name}_scratch"), slot, column)
                    copy_from(piece, address(memory, at + begin + unit * piece), *place)
            unit = number - index * STEP
            with when(T.And(unit >= 0, unit < STEP)):
                place = rows.place((scale_name(name, "cache"), scale_name(name, "scratch")), first + unit)
                copy_from(4, address(memory, at + self._scales + number * 4), *place)

    def open(self, memory: Buffer, at: Expr, opened: Expr, worker: tuple[Expr, int]) -> _ROWS:
        number, workers = worker
        # Values are made smaller by a power of two, and their weights larger: in float16 those had little left.
        storage, dtype = self.problem.form.storage, self.problem.dtype
        room = 2.0**7 if storage == INT8 else 2.0**8
        targets = (opened, T.Bind(opened + STEP * self.key_row))
        strides, factors = (self.key_row, self.value_row), (1.0, 1.0 / room)
        for index, (_, dim) in enumerate(self._dims):
            octets, begin = dim // OCTET, index * STEP * self._dims[0][1]
            for start in range(0, STEP * octets, workers):
                unit = T.Bind(number + start)
                with nullcontext() if start + workers <= STEP * octets else when(unit < STEP * octets):
                    to = targets[index] + unit // octets * strides[index] + unit % octets * (2 * ELEMENTS)
                    source, target = address(memory, at + begin + unit * OCTET), address(memory, to)
                    widen_octet(stored_name(storage), dtype, target, source, T.float32(factors[index]))
        scales = T.Bind(at + self._scales)
        return *targets, Scales(scales, T.Bind(scales + STEP * 4), room)
