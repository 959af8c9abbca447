"""What a rule for a call may use."""

from collections.abc import Callable
from typing import Any, Protocol

from dspark_compiler.backends.vulkan.arithmetic import Arithmetic
from dspark_compiler.backends.vulkan.memory import Use
from dspark_compiler.backends.vulkan.scope import View
from dspark_compiler.backends.vulkan.spirv.types import Scalar
from dspark_compiler.backends.vulkan.values import Value

Side = Callable[[], Value]


class Emitter(Protocol):
    """The expressions of a kernel, as the rules for calls see them."""

    do: Arithmetic
    ordered_buffers: bool  # whether barriers have to order accesses to buffers, too

    def value(self, expr: Any) -> Value:
        """The value of an expression."""

    def pointer(self, load: Any, use: Use = Use.EXCHANGES, wide: Scalar | None = None) -> tuple[int, View]:
        """A pointer to the element that a load of one number would read, for a use, and where that lies.

        To a ``wide`` number that several of a buffer's begin with it make up.
        """

    def load_written(self, load: Any) -> Value:
        """What a load reads, of which others may write each number meanwhile."""

    def unset(self, load: Any, value: Value) -> None:
        """Stores where a load of as many numbers would read, before others are told by that memory."""

    def given_up(self) -> int:
        """A pointer to the word, uint32, that says that a wait was given up."""

    def vectors(self, load: Any) -> tuple[int, int, tuple[int, ...]]:
        """Where a load begins: a pointer to a vector, its elements, operands of accesses."""

    def choose(self, condition: Value, sides: tuple[Side, Side], like: Any) -> Value:
        """Only the side that holds is computed, the first where the condition does; ``like`` has the type of both."""


Rule = Callable[[Emitter, Any], Value | None]
