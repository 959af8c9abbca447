"""Expressions of TIR as SPIR-V values."""

from collections.abc import Callable
from typing import Any

from dspark_compiler.backends.vulkan.arithmetic import Arithmetic
from dspark_compiler.backends.vulkan.calls import find_call
from dspark_compiler.backends.vulkan.emitter import Side
from dspark_compiler.backends.vulkan.indexing import alignment, quotient
from dspark_compiler.backends.vulkan.memory import DeviceMemory, Index, Use
from dspark_compiler.backends.vulkan.narrowing import Narrowing
from dspark_compiler.backends.vulkan.scope import GIVEN_UP, Access, Scope, View, contiguous
from dspark_compiler.backends.vulkan.spirv.types import INT32, UINT32, Scalar, parse_dtype
from dspark_compiler.backends.vulkan.values import Value, widths
from dspark_compiler.backends.vulkan.walk import reads_memory

_BINARY = (
    *("Add", "Sub", "Mul", "Div", "Mod", "FloorDiv", "FloorMod", "Min", "Max"),
    *("EQ", "NE", "LT", "LE", "GT", "GE"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "LShift", "RShift"),
)


class Expressions:
    """Emits what computes the expressions of one kernel."""

    def __init__(self, do: Arithmetic, scope: Scope, ordered_buffers: bool = False) -> None:
        self.do = do
        self.scope = scope
        self.ordered_buffers = ordered_buffers
        self._narrowing = Narrowing(scope.ranges, scope.bound)
        self._rules: dict[str, Callable[[Any], Value]] = {
            **dict.fromkeys(_BINARY, self._binary),
            "IntImm": self._constant,
            "FloatImm": self._constant,
            "Var": self._variable,
            "Cast": self._cast,
            "And": self._logical,
            "Or": self._logical,
            "Not": lambda expr: self.do.invert(self.value(expr.a)),
            "BitwiseNot": lambda expr: self.do.invert(self.value(expr.a)),
            "Select": self._select,
            "Ramp": self._ramp,
            "Broadcast": lambda expr: self.do.broadcast(self.value(expr.value), int(expr.lanes)),
            "Shuffle": self._shuffle,
            "Let": self._let,
            "TensorLoad": self._load,
            "Call": self._call,
        }

    def value(self, expr: Any) -> Value:
        """The value of an expression.

        Raises:
            ValueError: something Vulkan has nothing for.
        """
        rule = self._rules.get(type(expr).__name__)
        if rule is None:
            raise ValueError(f"no rule for a {type(expr).__name__}")
        return rule(expr)

    def evaluate(self, expr: Any) -> None:
        """Emits an expression whose value nobody wants."""
        if type(expr).__name__ == "Call":
            find_call(expr)(self, expr)

    def store(self, buffer: Any, index: Any, value: Value) -> None:
        """buffer[index] = value."""
        view, index = self.view(buffer), self._narrowing.index(index)
        access = contiguous(index, view.lanes)
        if access is not None:
            view.memory.store(value, self._position(access.base, view), self._aligned(access.base, view))
            return
        for position, lane in zip(self.do.split(self.value(index)), self.do.split(value), strict=True):
            view.memory.store(lane, self._at(view, position), 1)

    def pointer(self, load: Any, use: Use = Use.EXCHANGES, wide: Scalar | None = None) -> tuple[int, View]:
        """See Emitter."""
        view, index = self.view(load.source), self._narrowing.index(load.indices[0])
        position, scalar = self._position(index, view), wide or view.scalar
        each = scalar.size // view.scalar.size
        return view.memory.pointer(scalar, lambda count: position(count * each), use), view

    def unset(self, load: Any, value: Value) -> None:
        """See Emitter."""
        view, access = self._contiguous(load)
        if not isinstance(view.memory, DeviceMemory):
            raise ValueError(f"{load} is memory that nobody else sees")
        position, aligned = self._position(access.base, view), self._aligned(access.base, view)
        view.memory.store(value, position, aligned, Use.UNSETS)

    def load_written(self, load: Any) -> Value:
        """See Emitter."""
        view, access = self._contiguous(load)
        if not isinstance(view.memory, DeviceMemory):
            raise ValueError(f"{load} reads what nobody else writes")
        aligned = self._aligned(access.base, view)
        return view.memory.load_written(view.scalar, access.lanes, self._position(access.base, view), aligned)

    def given_up(self) -> int:
        """See Emitter."""
        return self.scope.memories[GIVEN_UP].pointer(UINT32, lambda _: self.do.constant(INT32, 0), Use.EXCHANGES)

    def vectors(self, load: Any) -> tuple[int, int, tuple[int, ...]]:
        """See Emitter."""
        view, access = self._contiguous(load)
        aligned = self._aligned(access.base, view)
        return view.memory.vectors(view.scalar, self._position(access.base, view), aligned)

    def _contiguous(self, load: Any) -> tuple[View, Access]:
        """What a load of neighbouring numbers reads, and from where on."""
        view, index = self.view(load.source), self._narrowing.index(load.indices[0])
        access = contiguous(index, view.lanes)
        if access is None:
            raise ValueError(f"{load} does not begin neighbouring numbers")
        return view, access

    def view(self, buffer: Any) -> View:
        """Where a buffer lies."""
        if buffer not in self.scope.views:
            raise ValueError(f"the buffer {buffer.name} is declared nowhere")
        return self.scope.views[buffer]

    def choose(self, condition: Value, sides: tuple[Side, Side], like: Any) -> Value:
        """See Emitter."""
        scalar, lanes = parse_dtype(str(like.ty.dtype))
        types = [self.do.type(scalar, width) for width in widths(lanes)]
        then, otherwise = sides
        parts = self.do.body.choose(condition.id, types, lambda: list(then().parts), lambda: list(otherwise().parts))
        return Value(scalar, lanes, tuple(parts))

    def _constant(self, expr: Any) -> Value:
        scalar, lanes = parse_dtype(str(expr.ty.dtype))
        return self.do.constant(scalar, expr.value, lanes)

    def _variable(self, expr: Any) -> Value:
        if expr not in self.scope.values:
            raise ValueError(f"the variable {expr.name} is given nowhere")
        return self.do.convert(self.scope.values[expr], parse_dtype(str(expr.ty.dtype))[0])

    def _cast(self, expr: Any) -> Value:
        wanted = parse_dtype(str(expr.ty.dtype))[0]
        kept = self.scope.values.get(expr.value) if type(expr.value).__name__ == "Var" else None
        if kept is not None and kept.scalar == wanted:  # a small one, kept in 32 bits
            return kept
        return self.do.convert(self.value(expr.value), wanted)

    def _binary(self, expr: Any) -> Value:
        narrow = self._narrowing.comparison(expr)
        result = self.do.binary(type(expr).__name__, self.value(narrow.a), self.value(narrow.b))
        return result if narrow is expr else self.do.convert(result, parse_dtype(str(expr.ty.dtype))[0])

    def _logical(self, expr: Any) -> Value:
        conjunction, left = type(expr).__name__ == "And", self.value(expr.a)
        if left.lanes > 1 or not reads_memory(expr.b):
            return self.do.binary("BitwiseAnd" if conjunction else "BitwiseOr", left, self.value(expr.b))
        known = self.do.constant(left.scalar, not conjunction)

        def right() -> Value:
            return self.value(expr.b)

        return self.choose(left, (right, lambda: known) if conjunction else (lambda: known, right), like=expr)

    def _select(self, expr: Any) -> Value:
        return self.do.select(*(self.value(e) for e in (expr.condition, expr.true_value, expr.false_value)))

    def _ramp(self, expr: Any) -> Value:
        base, stride = self.value(expr.base), self.value(expr.stride)
        lanes = [base]
        for lane in range(1, int(expr.lanes)):
            step = self.do.binary("Mul", stride, self.do.constant(stride.scalar, lane))
            lanes.append(self.do.binary("Add", base, step))
        return self.do.join(lanes)

    def _shuffle(self, expr: Any) -> Value:
        lanes = [lane for vector in expr.vectors for lane in self.do.split(self.value(vector))]
        return self.do.join([lanes[int(index.value)] for index in expr.indices])

    def _let(self, expr: Any) -> Value:
        self.scope.bound[expr.var] = expr.value
        self.scope.values[expr.var] = self.value(expr.value)
        return self.value(expr.body)

    def _call(self, expr: Any) -> Value:
        result = find_call(expr)(self, expr)
        if result is None:
            raise ValueError(f"{expr.op} has no value")
        return result

    def _load(self, expr: Any) -> Value:
        view, index = self.view(expr.source), self._narrowing.index(expr.indices[0])
        access = contiguous(index, view.lanes)
        if access is not None:
            position, aligned = self._position(access.base, view), self._aligned(access.base, view)
            return view.memory.load(view.scalar, access.lanes, position, aligned)
        positions = self.do.split(self.value(index))
        return self.do.join([view.memory.load(view.scalar, 1, self._at(view, p), 1) for p in positions])

    def _aligned(self, base: Any, view: View) -> int:
        least = alignment(base, self.scope.bound)
        return least if view.offset is None else min(least, alignment(view.offset, self.scope.bound))

    def _position(self, base: Any, view: View) -> Index:
        whole = base if view.offset is None else base + view.offset
        return lambda count: self.value(quotient(whole, count, self.scope.bound))

    def _at(self, view: View, position: Value) -> Index:
        if view.offset is not None:
            position = self.do.binary("Add", position, self.do.convert(self.value(view.offset), position.scalar))
        return lambda _: position
