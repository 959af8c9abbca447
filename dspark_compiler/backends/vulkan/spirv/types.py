"""Scalar types, vectors of them, and constants.

All integers are declared without sign, as LLVM has them: instructions that care say so themselves.
"""

import re
import struct
from dataclasses import dataclass
from functools import cache, cached_property

from dspark_compiler.backends.vulkan.spirv.module import Module
from dspark_compiler.backends.vulkan.spirv.numbers import Capability, Decoration, Op, Storage

_FLOAT_FORMATS = {16: "<e", 32: "<f", 64: "<d"}
_FLOAT_CAPABILITIES = {16: Capability.FLOAT16, 64: Capability.FLOAT64}
_INT_CAPABILITIES = {8: Capability.INT8, 16: Capability.INT16, 64: Capability.INT64}


@dataclass(frozen=True)
class Scalar:
    """A scalar type: ``code`` is float, int, uint or bool."""

    code: str
    bits: int

    @cached_property
    def size(self) -> int:
        """Bytes in memory; a bool is one."""
        return self.bits // 8

    @property
    def signed(self) -> bool:
        """Whether instructions treat it as a signed integer."""
        return self.code == "int"

    @property
    def is_float(self) -> bool:
        """Whether it is a floating point type."""
        return self.code == "float"

    @property
    def is_bool(self) -> bool:
        """Whether it is the type of conditions."""
        return self.code == "bool"

    def __str__(self) -> str:
        return self.code if self.is_bool else f"{self.code}{self.bits}"


BOOL = Scalar("bool", 8)
INT32 = Scalar("int", 32)
UINT8 = Scalar("uint", 8)
UINT32 = Scalar("uint", 32)
UINT64 = Scalar("uint", 64)
FLOAT32 = Scalar("float", 32)


@cache
def parse_dtype(dtype: str) -> tuple[Scalar, int]:
    """The scalar type and the lanes of a type as TVM writes it, such as float16x8.

    Raises:
        ValueError: a type Vulkan has nothing for.
    """
    match = re.fullmatch(r"(float|int|uint|bool)(8|16|32|64|1)?(?:x(\d+))?", dtype)
    if match is None or (match[1] == "float" and match[2] not in ("16", "32", "64")):
        raise ValueError(f"no Vulkan type for {dtype}")
    lanes = int(match[3] or 1)
    if match[1] == "bool" or match[2] == "1":
        return BOOL, lanes
    return Scalar(match[1], int(match[2])), lanes


def type_id(module: Module, scalar: Scalar, lanes: int = 1) -> int:
    """The id of a scalar type or of a vector of 2 to 4."""
    if lanes > 1:
        return module.declare(Op.TYPE_VECTOR, type_id(module, scalar), lanes)
    if scalar.is_bool:
        return module.declare(Op.TYPE_BOOL)
    needed = (_FLOAT_CAPABILITIES if scalar.is_float else _INT_CAPABILITIES).get(scalar.bits)
    if needed is not None:
        module.require(needed)
    if scalar.is_float:
        return module.declare(Op.TYPE_FLOAT, scalar.bits)
    return module.declare(Op.TYPE_INT, scalar.bits, 0)


def constant(module: Module, scalar: Scalar, value: float, lanes: int = 1) -> int:
    """The id of a constant, the same in all lanes."""
    if lanes > 1:
        one = constant(module, scalar, value)
        return module.declare_value(Op.CONSTANT_COMPOSITE, type_id(module, scalar, lanes), *[one] * lanes)
    kind = type_id(module, scalar)
    if scalar.is_bool:
        return module.declare_value(Op.CONSTANT_TRUE if value else Op.CONSTANT_FALSE, kind)
    raw = _float_bytes(scalar, value) if scalar.is_float else int(value) % (1 << scalar.bits)
    words = (raw & 0xFFFFFFFF, raw >> 32) if scalar.bits == 64 else (raw,)
    return module.declare_value(Op.CONSTANT, kind, *words)


def told_constant(module: Module, number: int, default: int) -> int:
    """The id of an int32 that the driver is told when it compiles the module, under a number."""

    def make() -> int:
        made = module.new_value(Op.SPEC_CONSTANT, type_id(module, INT32), default)
        module.decorate(made, Decoration.SPEC_ID, number)
        return made

    return module.remember(("told", number), make)


def pointer_type(module: Module, storage: Storage, target: int) -> int:
    """The id of a pointer type."""
    return module.declare(Op.TYPE_POINTER, storage, target)


def array_behind_address(module: Module, scalar: Scalar, lanes: int, *, coherent: bool = False) -> int:
    """The id of a pointer type to any number of vectors in a buffer, one after the other.

    ``coherent``: what others write there is seen, without Vulkan's memory model.
    """
    key = ("behind", scalar, lanes, coherent)
    return module.remember(key, lambda: _array_behind_address(module, scalar, lanes, coherent))


def _array_behind_address(module: Module, scalar: Scalar, lanes: int, coherent: bool) -> int:
    if scalar.bits in (8, 16):
        width = scalar.bits
        needed = Capability.STORAGE_BUFFER8_BIT_ACCESS if width == 8 else Capability.STORAGE_BUFFER16_BIT_ACCESS
        module.require(needed)
    elements = module.declare_new(Op.TYPE_RUNTIME_ARRAY, type_id(module, scalar, lanes))
    module.decorate(elements, Decoration.ARRAY_STRIDE, scalar.size * lanes)
    block = module.declare_new(Op.TYPE_STRUCT, elements)
    module.decorate(block, Decoration.BLOCK)
    module.decorate_member(block, 0, Decoration.OFFSET, 0)
    if coherent:
        module.decorate_member(block, 0, Decoration.COHERENT)
    return pointer_type(module, Storage.PHYSICAL_STORAGE_BUFFER, block)


def _float_bytes(scalar: Scalar, value: float) -> int:
    try:
        raw = struct.pack(_FLOAT_FORMATS[scalar.bits], value)
    except OverflowError:  # beyond the type's range: infinite, as a cast makes it
        raw = struct.pack(_FLOAT_FORMATS[scalar.bits], float("inf") if value > 0 else float("-inf"))
    return int.from_bytes(raw, "little")
