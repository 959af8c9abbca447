"""How a kernel gets its arguments.

They lie in a block: push constants where they fit into the 128 bytes every device has, else memory whose address is
pushed. A buffer is its 64-bit address (SPV_KHR_physical_storage_buffer): there are no descriptors. Behind the arguments
of a kernel that waits for others lies the address of a word that it sets when it gives up.
"""

from dataclasses import dataclass
from typing import Any

from dspark_compiler.backends.vulkan.arithmetic import Arithmetic
from dspark_compiler.backends.vulkan.memory import DeviceMemory, Usage
from dspark_compiler.backends.vulkan.scope import GIVEN_UP, Scope
from dspark_compiler.backends.vulkan.spirv import numbers
from dspark_compiler.backends.vulkan.spirv.numbers import Decoration, Op, Storage
from dspark_compiler.backends.vulkan.spirv.types import INT32, UINT32, Scalar, parse_dtype, pointer_type
from dspark_compiler.backends.vulkan.values import Value

_PUSH_CONSTANT_BYTES = 128  # what every device has
_ADDRESS_BYTES = 8


@dataclass(frozen=True)
class Argument:
    """An argument of a kernel: where it lies in the block, and what it is.

    ``scalar`` is None for a buffer, ``usage`` None for a scalar.
    """

    offset: int
    scalar: Scalar | None
    usage: Usage | None

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return _ADDRESS_BYTES if self.scalar is None else self.scalar.size


@dataclass(frozen=True)
class ArgumentBlock:
    """All arguments of a kernel, in the order it is called with them.

    ``given_up`` comes from the runtime; it is absent from a kernel that does not wait.
    """

    arguments: tuple[Argument, ...]
    given_up: Argument | None = None

    @staticmethod
    def of(params: Any, *, waits: bool) -> "ArgumentBlock":
        """The block of a device function's parameters: each on a multiple of its size."""
        arguments, offset = [], 0
        for param in params:
            scalar, usage = None, None
            if type(param.ty).__name__ == "PointerType":
                usage = Usage()
            else:
                scalar = _passed_as(parse_dtype(str(param.ty.dtype))[0])
            size = Argument(0, scalar, usage).size
            offset = -(-offset // size) * size
            arguments.append(Argument(offset, scalar, usage))
            offset += size
        given_up = Argument(-(-offset // _ADDRESS_BYTES) * _ADDRESS_BYTES, None, Usage()) if waits else None
        return ArgumentBlock(tuple(arguments), given_up)

    @property
    def size(self) -> int:
        """Bytes the block takes."""
        return self._all[-1].offset + self._all[-1].size if self._all else 0

    @property
    def _all(self) -> tuple[Argument, ...]:
        return self.arguments if self.given_up is None else (*self.arguments, self.given_up)

    @property
    def pushed(self) -> bool:
        """Whether the block itself is pushed, not its address."""
        return self.size <= _PUSH_CONSTANT_BYTES

    def bind(self, do: Arithmetic, scope: Scope, params: Any) -> None:
        """Declares the block and gives each parameter its value or memory, loaded at the start of the kernel."""
        if not self._all:
            return
        # Addresses as pairs of words, which need no 64-bit integers.
        kinds = [do.type(UINT32, 2) if a.scalar is None else do.type(a.scalar) for a in self._all]
        block = _struct(do, kinds, [argument.offset for argument in self._all])
        storage = Storage.PUSH_CONSTANT if self.pushed else Storage.PHYSICAL_STORAGE_BUFFER
        root = _pushed(do, block) if self.pushed else _behind_pushed_address(do, block)
        for number, (param, argument) in enumerate(zip((*params, GIVEN_UP), self._all, strict=False)):
            operands = () if self.pushed else (numbers.ALIGNED, argument.size)
            loaded = _member(do, storage, root, number, kinds[number], operands)
            if argument.scalar is None:
                assert argument.usage is not None
                scope.memories[param] = DeviceMemory(do, loaded, argument.usage)
            else:
                value, scalar = Value(argument.scalar, 1, (loaded,)), parse_dtype(str(param.ty.dtype))[0]
                scope.values[param] = _restored(do, value, scalar)


def _passed_as(scalar: Scalar) -> Scalar:
    """Numbers below 4 bytes travel in 4."""
    if scalar.bits >= UINT32.bits:
        return scalar
    return Scalar("float", 32) if scalar.is_float else INT32


def _restored(do: Arithmetic, value: Value, scalar: Scalar) -> Value:
    """An argument in its own type, converted at the start of the kernel."""
    return Value(scalar, 1, (do.body.at_entry(lambda: do.convert(value, scalar).id),))


def _struct(do: Arithmetic, kinds: list[int], offsets: list[int]) -> int:
    block = do.module.declare_new(Op.TYPE_STRUCT, *kinds)
    do.module.decorate(block, Decoration.BLOCK)
    for member, offset in enumerate(offsets):
        do.module.decorate_member(block, member, Decoration.OFFSET, offset)
    return block


def _pushed(do: Arithmetic, block: int) -> int:
    """The variable of the push constants, which are a ``block``."""
    pointer = pointer_type(do.module, Storage.PUSH_CONSTANT, block)
    return do.module.declare_variable(pointer, Storage.PUSH_CONSTANT)


def _behind_pushed_address(do: Arithmetic, block: int) -> int:
    """A pointer to the ``block`` whose address is pushed."""
    pair, pointer = do.type(UINT32, 2), pointer_type(do.module, Storage.PHYSICAL_STORAGE_BUFFER, block)
    address = _member(do, Storage.PUSH_CONSTANT, _pushed(do, _struct(do, [pair], [0])), 0, pair, ())
    return do.body.at_entry(lambda: do.body.emit(Op.BITCAST, pointer, address))


def _member(do: Arithmetic, storage: Storage, root: int, number: int, kind: int, operands: tuple[int, ...]) -> int:
    """A member of a block, loaded at the start of the kernel."""

    def load() -> int:
        pointer = pointer_type(do.module, storage, kind)
        element = do.body.emit(Op.ACCESS_CHAIN, pointer, root, do.constant(INT32, number).id)
        return do.body.emit(Op.LOAD, kind, element, *operands)

    return do.body.at_entry(load)
