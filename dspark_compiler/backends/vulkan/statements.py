"""Statements of TIR as SPIR-V instructions and structured control flow."""

import math
from collections.abc import Callable
from typing import Any

from dspark_compiler.backends.vulkan.expressions import Expressions
from dspark_compiler.backends.vulkan.indexing import constant_of
from dspark_compiler.backends.vulkan.matrices import KINDS, Matrices
from dspark_compiler.backends.vulkan.memory import ChipMemory
from dspark_compiler.backends.vulkan.scope import View
from dspark_compiler.backends.vulkan.spirv.numbers import BuiltIn, Op, Storage
from dspark_compiler.backends.vulkan.spirv.types import INT32, UINT32, parse_dtype
from dspark_compiler.backends.vulkan.values import Value

_SERIAL, _UNROLLED = 0, 3  # kinds of loops that are left in a lowered function
_STORAGES = {"local": Storage.FUNCTION, "": Storage.FUNCTION, "shared": Storage.WORKGROUP}
_BUILTINS = {"blockIdx": BuiltIn.WORKGROUP_ID, "threadIdx": BuiltIn.LOCAL_INVOCATION_ID}
_AXES = "xyz"
_MOST = 1 << 30  # work groups, or iterations of a loop, that are counted in 32 bits


class Statements:
    """Emits the statements of one kernel, and learns from them the size of its work groups."""

    def __init__(self, expressions: Expressions, vector_widths: dict[Any, int]) -> None:
        self._expressions = expressions
        self._do, self._scope = expressions.do, expressions.scope
        self._widths = vector_widths
        self._loops: list[tuple[int, int]] = []  # labels that break and continue go to, of the loops around
        self.workgroup = [1, 1, 1]
        self.shared_bytes = 0
        self._rules: dict[str, Callable[[Any], None]] = {
            "SeqStmt": self._sequence,
            "AttrStmt": self._attribute,
            "For": self._for,
            "While": self._while,
            "IfThenElse": self._if,
            "BufferStore": self._store,
            "Evaluate": self._evaluate,
            "Bind": self._bind,
            "AllocBuffer": self._allocate,
            "DeclBuffer": self._declare,
            "AssertStmt": lambda _: None,
            "Break": lambda _: self._leave(0),
            "Continue": lambda _: self._leave(1),
            "Return": lambda _: self._do.body.end(),
        }

    def emit(self, statement: Any) -> None:
        """Emits a statement.

        Raises:
            ValueError: something Vulkan has nothing for.
        """
        rule = self._rules.get(type(statement).__name__)
        if rule is None:
            raise ValueError(f"no rule for a {type(statement).__name__}")
        rule(statement)

    def _sequence(self, statement: Any) -> None:
        for one in statement.seq:
            if self._do.body.ended:  # behind a break: never reached
                return
            self.emit(one)

    def _attribute(self, statement: Any) -> None:
        if statement.attr_key == "thread_extent":
            self._thread(statement.node, statement.value)
        self.emit(statement.body)

    def _thread(self, axis: Any, extent: Any) -> None:
        """Gives the index of a work group or of an invocation its value."""
        kind, _, letter = str(axis.thread_tag).partition(".")
        if kind not in _BUILTINS:
            raise ValueError(f"no index {axis.thread_tag} on Vulkan")
        number = _AXES.index(letter)
        if kind == "threadIdx":
            size = constant_of(extent)
            if size is None:
                raise ValueError(f"the extent {extent} of {axis.thread_tag} is not known at compile time")
            self.workgroup[number] = size
        if axis.var not in self._scope.values:
            index = self._do.body.at_entry(lambda: self._index(_BUILTINS[kind], number))
            self._scope.values[axis.var] = Value(INT32, 1, (index,))
            self._scope.ranges[axis.var] = (0, (constant_of(extent) or _MOST) - 1)

    def _index(self, builtin: BuiltIn, axis: int) -> int:
        triple, body = self._do.type(UINT32, 3), self._do.body
        loaded = body.emit(Op.LOAD, triple, self._do.module.builtin(builtin, triple))
        return body.emit(Op.COMPOSITE_EXTRACT, self._do.type(UINT32), loaded, axis)

    def _for(self, loop: Any) -> None:
        if int(loop.kind) not in (_SERIAL, _UNROLLED):
            raise ValueError(f"a loop of kind {int(loop.kind)} over {loop.loop_var.name} is left in the kernel")
        begin, extent = self._value(loop.min), self._value(loop.extent)
        step = self._do.constant(begin.scalar, 1) if loop.step is None else self._value(loop.step)
        if self._is_small(loop):
            begin, extent, step = (self._do.convert(value, INT32) for value in (begin, extent, step))
        end = extent if constant_of(loop.min) == 0 else self._do.binary("Add", begin, extent)

        def index(number: int) -> Value:
            return Value(begin.scalar, 1, (number,))

        def body(number: int, merge: int, onward: int) -> None:
            self._scope.values[loop.loop_var] = index(number)
            self._inside(merge, onward, loop.body)

        self._do.body.loop(
            self._do.type(begin.scalar),
            begin.id,
            lambda number: self._do.binary("LT", index(number), end).id,
            lambda number: self._do.binary("Add", index(number), step).id,
            body,
        )

    def _is_small(self, loop: Any) -> bool:
        """Whether the index of a loop can be counted in 32 bits, which is then noted."""
        first, count = constant_of(loop.min), constant_of(loop.extent)
        if first is None or count is None or not 0 <= first <= first + count < _MOST:
            return False
        self._scope.ranges[loop.loop_var] = (first, max(first, first + count - 1))
        return True

    def _while(self, loop: Any) -> None:
        self._do.body.repeat(
            lambda: self._value(loop.condition).id, lambda merge, onward: self._inside(merge, onward, loop.body)
        )

    def _inside(self, merge: int, onward: int, body: Any) -> None:
        self._loops.append((merge, onward))
        self.emit(body)
        self._loops.pop()

    def _leave(self, which: int) -> None:
        if not self._loops:
            raise ValueError("a break or continue outside of loops")
        self._do.body.branch(self._loops[-1][which])

    def _if(self, statement: Any) -> None:
        other = statement.else_case
        otherwise = None if other is None else lambda: self.emit(other)
        self._do.body.either(self._value(statement.condition).id, lambda: self.emit(statement.then_case), otherwise)

    def _store(self, statement: Any) -> None:
        (index,) = statement.indices
        self._expressions.store(statement.buffer, index, self._value(statement.value))

    def _evaluate(self, statement: Any) -> None:
        call = statement.value
        name = str(getattr(getattr(call, "op", None), "name", "")).split(".")[-1]
        if name in ("break_loop", "continue_loop"):
            self._leave(0 if name == "break_loop" else 1)
        elif name in ("thread_return", "ret"):
            self._do.body.end()
        else:
            self._expressions.evaluate(call)

    def _bind(self, statement: Any) -> None:
        self._scope.bound[statement.var] = statement.value
        self._scope.values[statement.var] = self._value(statement.value)

    def _allocate(self, statement: Any) -> None:
        buffer = statement.buffer
        place = str(buffer.ty.storage_scope)
        storage = _STORAGES.get(place)
        sizes = [constant_of(extent) for extent in buffer.ty.shape]
        if (storage is None and place not in KINDS) or None in sizes:
            raise ValueError(f"no place for the buffer {buffer.name} of scope {place}")
        scalar, lanes = parse_dtype(str(buffer.ty.dtype.dtype))
        length = math.prod(size for size in sizes if size is not None) * lanes
        if storage is None:
            self._scope.views[buffer] = View(Matrices(self._do, place, scalar, length), scalar, lanes)
            return
        volatile = bool((statement.annotations or {}).get("tirx.volatile", False))
        width = self._widths.get(buffer, 1)
        while length % width:
            width //= 2
        memory = ChipMemory(self._do, storage, scalar, length, width, volatile)
        self._scope.views[buffer] = View(memory, scalar, lanes)
        if storage is Storage.WORKGROUP:
            self.shared_bytes += memory.bytes

    def _declare(self, statement: Any) -> None:
        """A buffer over memory that is there: a kernel's argument, or another buffer's."""
        buffer, data = statement.buffer, statement.data
        if type(data).__name__ == "Call" and str(getattr(data.op, "name", "")).endswith("buffer_data"):
            memory = self._expressions.view(data.args[0]).memory
        elif data in self._scope.memories:
            memory = self._scope.memories[data]
        else:
            raise ValueError(f"the buffer {buffer.name} lies in {data}, which is no argument")
        scalar, lanes = parse_dtype(str(buffer.ty.dtype.dtype))
        offset = buffer.ty.elem_offset
        nothing = offset is None or constant_of(offset) == 0
        self._scope.views[buffer] = View(memory, scalar, lanes, None if nothing else offset * lanes)

    def _value(self, expr: Any) -> Value:
        return self._expressions.value(expr)
