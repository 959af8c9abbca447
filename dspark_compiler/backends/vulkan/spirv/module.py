"""A SPIR-V module under construction: its ids, its sections in the order the specification wants, its words."""

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum

from dspark_compiler.backends.vulkan.spirv import numbers
from dspark_compiler.backends.vulkan.spirv.numbers import BuiltIn, Capability, Decoration, Op, Storage


class Module:
    """One compute shader: everything of it but the function's own instructions."""

    def __init__(self) -> None:
        self._next = 1
        self._capabilities: dict[Capability, None] = {}
        self._extensions: dict[str, None] = {}
        self._names: list[int] = []
        self._decorations: list[int] = []
        self._declarations: list[int] = []  # types, constants and global variables, in order of use
        self._declared: dict[tuple[object, ...], int] = {}
        self._interface: list[int] = []
        self.glsl = self.new_id()

    def new_id(self) -> int:
        """An id nothing has yet."""
        self._next += 1
        return self._next - 1

    def require(self, capability: Capability, extension: str | None = None) -> None:
        """Says that the module needs ``capability``, which ``extension`` defines."""
        self._capabilities[capability] = None
        if extension is not None:
            self._extensions[extension] = None

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the module needs so far."""
        return frozenset(self._capabilities)

    @property
    def has_vulkan_memory_model(self) -> bool:
        """Whether accesses are ordered by Vulkan's memory model: what others are to see says so itself."""
        return Capability.VULKAN_MEMORY_MODEL in self._capabilities

    def name(self, target: int, name: str) -> None:
        """A name for people who read the disassembly."""
        self._names += instruction(Op.NAME, target, *string_words(name))

    def decorate(self, target: int, decoration: Decoration, *operands: int) -> None:
        """OpDecorate."""
        self._decorations += instruction(Op.DECORATE, target, decoration, *operands)

    def decorate_member(self, target: int, member: int, decoration: Decoration, *operands: int) -> None:
        """OpMemberDecorate."""
        self._decorations += instruction(Op.MEMBER_DECORATE, target, member, decoration, *operands)

    def declare(self, op: Op, *operands: int) -> int:
        """The id of a type: one for all that ask with the same operands."""
        key = (op, *operands)
        if key not in self._declared:
            self._declared[key] = self.new_id()
            self._declarations += instruction(op, self._declared[key], *operands)
        return self._declared[key]

    def declare_new(self, op: Op, *operands: int) -> int:
        """The id of a type of its own, to be decorated."""
        result = self.new_id()
        self._declarations += instruction(op, result, *operands)
        return result

    def declare_value(self, op: Op, result_type: int, *operands: int) -> int:
        """The id of a constant: one for all that ask with the same operands."""
        key = (op, result_type, *operands)
        if key not in self._declared:
            self._declared[key] = self.new_id()
            self._declarations += instruction(op, result_type, self._declared[key], *operands)
        return self._declared[key]

    def new_value(self, op: Op, result_type: int, *operands: int) -> int:
        """The id of a constant of its own, to be decorated."""
        result = self.new_id()
        self._declarations += instruction(op, result_type, result, *operands)
        return result

    def remember(self, key: tuple[object, ...], make: Callable[[], int]) -> int:
        """The id ``make`` gave the first time it was asked for under this key."""
        if key not in self._declared:
            self._declared[key] = make()
        return self._declared[key]

    def declare_variable(self, pointer_type: int, storage: Storage) -> int:
        """A variable outside functions, part of the entry point's interface."""
        variable = self.new_id()
        self._declarations += instruction(Op.VARIABLE, pointer_type, variable, storage)
        self._interface.append(variable)
        return variable

    def builtin(self, builtin: BuiltIn, value_type: int) -> int:
        """The input variable of a value the device gives."""
        key = ("builtin", builtin)
        if key not in self._declared:
            pointer = self.declare(Op.TYPE_POINTER, Storage.INPUT, value_type)
            self._declared[key] = self.declare_variable(pointer, Storage.INPUT)
            self.decorate(self._declared[key], Decoration.BUILT_IN, builtin)
        return self._declared[key]

    def words(self, entry: int, local_size: tuple[int, int, int], function: Sequence[int]) -> bytes:
        """The module with ``function``, whose id is ``entry``, as its entry point ``main``; little endian."""
        self.require(Capability.SHADER)
        self.require(Capability.PHYSICAL_STORAGE_BUFFER_ADDRESSES)
        words = [numbers.MAGIC, numbers.VERSION_1_5, 0, self._next, 0]
        for capability in sorted(self._capabilities):
            words += instruction(Op.CAPABILITY, capability)
        for extension in sorted(self._extensions):
            words += instruction(Op.EXTENSION, *string_words(extension))
        words += instruction(Op.EXT_INST_IMPORT, self.glsl, *string_words("GLSL.std.450"))
        model = numbers.MEMORY_MODEL_VULKAN if self.has_vulkan_memory_model else numbers.MEMORY_MODEL_GLSL450
        words += instruction(Op.MEMORY_MODEL, numbers.ADDRESSING_PHYSICAL_STORAGE_BUFFER64, model)
        main = (numbers.EXECUTION_MODEL_GL_COMPUTE, entry, *string_words("main"), *self._interface)
        words += instruction(Op.ENTRY_POINT, *main)
        words += instruction(Op.EXECUTION_MODE, entry, numbers.EXECUTION_MODE_LOCAL_SIZE, *local_size)
        words += [*self._names, *self._decorations, *self._declarations, *function]
        return struct.pack(f"<{len(words)}I", *words)


def instruction(op: IntEnum, *operands: int) -> list[int]:
    """An instruction's words."""
    return [(len(operands) + 1) << 16 | op, *operands]


def string_words(text: str) -> list[int]:
    """A string, ended by a zero byte and padded to words."""
    raw = text.encode() + b"\0"
    raw += b"\0" * (-len(raw) % 4)
    return list(struct.unpack(f"<{len(raw) // 4}I", raw))
