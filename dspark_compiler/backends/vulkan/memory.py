"""Where a kernel's buffers lie: behind an address, in the work group's memory, or private to an invocation.

Contiguous elements move in accesses of up to 16 bytes, as far as the index is known to be aligned.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from dspark_compiler.backends.vulkan.arithmetic import Arithmetic
from dspark_compiler.backends.vulkan.spirv import numbers
from dspark_compiler.backends.vulkan.spirv.numbers import Op, Storage
from dspark_compiler.backends.vulkan.spirv.types import (
    INT32,
    UINT8,
    UINT32,
    Scalar,
    array_behind_address,
    pointer_type,
    type_id,
)
from dspark_compiler.backends.vulkan.values import Value

# Where all see an operation, in Vulkan's memory model: one queue is all we use, and wider takes a feature of it.
WHOLE_DEVICE = numbers.Scope.QUEUE_FAMILY
_ACCESS = 16  # bytes at once
_WORD = 4
Index = Callable[[int], Value]  # n -> the index in units of n elements


class Memory(Protocol):
    """Elements that can be read, written and updated atomically."""

    def load(self, scalar: Scalar, lanes: int, index: Index, aligned: int) -> Value:
        """``lanes`` elements from an index on that is a multiple of ``aligned``, a power of two."""

    def store(self, value: Value, index: Index, aligned: int) -> None:
        """The opposite."""

    def pointer(self, scalar: Scalar, index: Index, use: "Use") -> int:
        """The id of a pointer to one element, for what is done to it."""

    def vectors(self, scalar: Scalar, index: Index, aligned: int) -> tuple[int, int, tuple[int, ...]]:
        """The id of a pointer to as many elements as are read at once, their number, operands of such an access."""


class Use(Enum):
    """How a kernel uses an argument; the value is what it is called in a module, if the kernel does nothing else."""

    READS = "r"
    WRITES = "w"
    EXCHANGES = (
        "x"  # by atomic operations, which its own work groups know the order of; it may do anything else besides
    )
    AWAITS = "a"  # reads it only after it has seen that it is there
    PUBLISHES = "p"  # writes it for launches that await it
    UNSETS = "u"  # before it is published


@dataclass
class Usage:
    """What a kernel does with one of its arguments."""

    uses: set[Use] = field(default_factory=set)

    def __str__(self) -> str:
        if self.uses == {Use.AWAITS, Use.READS}:
            return Use.AWAITS.value
        if Use.EXCHANGES in self.uses and self.uses <= {Use.EXCHANGES, Use.READS, Use.WRITES}:
            return Use.EXCHANGES.value
        if len(self.uses) == 1:
            return next(iter(self.uses)).value
        return "rw" if self.uses - {Use.READS} else "r"


class DeviceMemory:
    """A buffer argument: elements of any type behind a 64-bit address."""

    def __init__(self, arithmetic: Arithmetic, address: int, usage: Usage) -> None:
        self._do = arithmetic
        self._address = address
        self._usage = usage
        self._views: dict[tuple[Scalar, int, bool], int] = {}

    def load(self, scalar: Scalar, lanes: int, index: Index, aligned: int) -> Value:
        """See Memory."""
        if scalar.is_bool:
            return self._do.convert(self.load(UINT8, lanes, index, aligned), scalar)
        self._usage.uses.add(Use.READS)
        each, unit, count = _access(scalar, lanes, aligned)
        pieces = []
        for begin in range(0, lanes, each):
            pointer = self._element(unit, count, index(each), begin // each)
            operands = (numbers.ALIGNED, unit.size * count)
            loaded = self._do.body.emit(Op.LOAD, self._do.type(unit, count), pointer, *operands)
            pieces.append(self._do.bitcast(Value(unit, count, (loaded,)), scalar, each))
        return self._do.join(pieces)

    def store(self, value: Value, index: Index, aligned: int, use: Use = Use.WRITES) -> None:
        """See Memory."""
        if value.scalar.is_bool:
            value = self._do.convert(value, UINT8)
        self._usage.uses.add(use)
        each, unit, count = _access(value.scalar, value.lanes, aligned)
        for begin in range(0, value.lanes, each):
            piece = self._do.bitcast(self._do.piece(value, begin, each), unit, count)
            pointer = self._element(unit, count, index(each), begin // each)
            self._do.body.emit_void(Op.STORE, pointer, piece.id, numbers.ALIGNED, unit.size * count)

    def load_written(self, scalar: Scalar, lanes: int, index: Index, aligned: int) -> Value:
        """The same in one access, and what others have written meanwhile; each lane at some time, not all at the same.

        Raises:
            ValueError: so many are not read at once.
        """
        each, unit, count = _access(scalar, lanes, aligned)
        if each != lanes:
            raise ValueError(f"{lanes} x {scalar} are not read at once")
        self._usage.uses.add(Use.AWAITS)
        mask = numbers.VOLATILE | numbers.ALIGNED
        scope: tuple[int, ...] = ()
        own_model = self._do.module.has_vulkan_memory_model
        if own_model:
            mask |= numbers.NON_PRIVATE | numbers.MAKE_POINTER_VISIBLE
            scope = (self._do.constant(UINT32, WHOLE_DEVICE).id,)
        pointer = self._element(unit, count, index(each), 0, coherent=not own_model)
        loaded = self._do.body.emit(Op.LOAD, self._do.type(unit, count), pointer, mask, unit.size * count, *scope)
        return self._do.bitcast(Value(unit, count, (loaded,)), scalar, lanes)

    def pointer(self, scalar: Scalar, index: Index, use: Use) -> int:
        """See Memory."""
        self._usage.uses.add(use)
        return self._element(scalar, 1, index(1), 0)

    def vectors(self, scalar: Scalar, index: Index, aligned: int) -> tuple[int, int, tuple[int, ...]]:
        """See Memory."""
        self._usage.uses.add(Use.READS)
        each, unit, count = _access(scalar, _ACCESS // scalar.size, aligned)
        pointer = self._element(unit, count, index(each), 0)
        return pointer, each, (numbers.ALIGNED, unit.size * count)

    def _element(self, unit: Scalar, count: int, index: Value, offset: int, *, coherent: bool = False) -> int:
        base = self._view(unit, count, coherent)
        kind = pointer_type(self._do.module, Storage.PHYSICAL_STORAGE_BUFFER, self._do.type(unit, count))
        if offset:
            index = self._do.binary("Add", index, self._do.constant(index.scalar, offset))
        first = self._do.constant(INT32, 0)
        return self._do.body.emit(Op.ACCESS_CHAIN, kind, base, first.id, index.id)

    def _view(self, unit: Scalar, count: int, coherent: bool) -> int:
        """The address as a pointer to vectors of ``count``."""
        key = unit, count, coherent
        if key not in self._views:
            kind = array_behind_address(self._do.module, unit, count, coherent=coherent)
            self._views[key] = self._do.body.at_entry(lambda: self._do.body.emit(Op.BITCAST, kind, self._address))
        return self._views[key]


class ChipMemory:
    """An array on the chip, shared by a work group or private: vectors of ``width`` elements of one type."""

    def __init__(
        self, arithmetic: Arithmetic, storage: Storage, scalar: Scalar, length: int, width: int, volatile: bool
    ) -> None:
        self._do = arithmetic
        self._storage, self._scalar, self._width = storage, scalar, width
        operands = numbers.VOLATILE if volatile else 0
        if storage is Storage.WORKGROUP and arithmetic.module.has_vulkan_memory_model:
            operands |= numbers.NON_PRIVATE
        self.operands = (operands,) if operands else ()  # of its loads and stores
        self.bytes = scalar.size * length
        module = arithmetic.module
        count = arithmetic.constant(UINT32, -(-length // width))
        array = module.declare(Op.TYPE_ARRAY, type_id(module, scalar, width), count.id)
        pointer = pointer_type(module, storage, array)
        if storage is Storage.FUNCTION:
            self._variable = arithmetic.body.variable(pointer)
        else:
            self._variable = module.declare_variable(pointer, storage)

    def load(self, scalar: Scalar, lanes: int, index: Index, aligned: int) -> Value:
        """See Memory."""
        self._check(scalar)
        each = self._width if aligned % self._width == 0 and lanes % self._width == 0 else 1
        kind = self._do.type(scalar, each)
        pieces = []
        for begin in range(0, lanes, each):
            pointer = self._element(each, index, begin)
            pieces.append(Value(scalar, each, (self._do.body.emit(Op.LOAD, kind, pointer, *self.operands),)))
        return self._do.join(pieces)

    def store(self, value: Value, index: Index, aligned: int) -> None:
        """See Memory."""
        self._check(value.scalar)
        each = self._width if aligned % self._width == 0 and value.lanes % self._width == 0 else 1
        for begin in range(0, value.lanes, each):
            piece = self._do.piece(value, begin, each)
            self._do.body.emit_void(Op.STORE, self._element(each, index, begin), piece.id, *self.operands)

    def pointer(self, scalar: Scalar, index: Index, use: Use) -> int:
        """See Memory."""
        self._check(scalar)
        return self._element(1, index, 0)

    def vectors(self, scalar: Scalar, index: Index, aligned: int) -> tuple[int, int, tuple[int, ...]]:
        """See Memory."""
        if aligned % self._width:
            raise ValueError(f"an access begins within a vector of {self._width}")
        return self._element(self._width, index, 0), self._width, self.operands

    def _element(self, each: int, index: Index, begin: int) -> int:
        kind = pointer_type(self._do.module, self._storage, self._do.type(self._scalar, each))
        position = index(each)
        if begin:
            position = self._do.binary("Add", position, self._do.constant(position.scalar, begin // each))
        chain = [position.id]
        if each < self._width:
            bits = self._do.constant(position.scalar, self._width.bit_length() - 1)
            inside = self._do.binary("BitwiseAnd", position, self._do.constant(position.scalar, self._width - 1))
            chain = [self._do.binary("RShift", position, bits).id, inside.id]
        return self._do.body.emit(Op.ACCESS_CHAIN, kind, self._variable, *chain)

    def _check(self, scalar: Scalar) -> None:
        if scalar != self._scalar:
            raise ValueError(f"an array of {self._scalar} is accessed as {scalar}")


def _access(scalar: Scalar, lanes: int, aligned: int) -> tuple[int, Scalar, int]:
    """Elements an access takes, and the vector it is made as: types below 4 bytes travel as words."""
    each = max(1, min(lanes, _ACCESS // scalar.size, aligned))
    each = 1 << each.bit_length() - 1
    while lanes % each:
        each //= 2
    if scalar.size >= _WORD or each == 1:
        return each, scalar, each
    if each * scalar.size < _WORD:
        return 1, scalar, 1
    return each, UINT32, each * scalar.size // _WORD
