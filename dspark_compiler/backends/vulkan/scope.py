"""What names mean in a kernel: variables, and buffers as views of memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dspark_compiler.backends.vulkan.indexing import alignment
from dspark_compiler.backends.vulkan.memory import Memory
from dspark_compiler.backends.vulkan.spirv.types import Scalar, parse_dtype
from dspark_compiler.backends.vulkan.values import Value

GIVEN_UP = "given_up"  # among pointers: to the word that says that a wait was given up

_WIDEST = 4
_VECTOR_BYTES = 16


@dataclass(frozen=True)
class View:
    """A buffer of TIR: elements of ``lanes`` numbers each, from element ``offset`` of a memory on."""

    memory: Memory
    scalar: Scalar
    lanes: int
    offset: Any = None  # an expression, or None for 0


@dataclass
class Scope:
    """Meaning of the names of one kernel; each is given once."""

    values: dict[Any, Value] = field(default_factory=dict)  # of a 64-bit variable known to be small, in 32 bits
    ranges: dict[Any, tuple[int, int]] = field(default_factory=dict)  # least and greatest value of a variable
    bound: dict[Any, Any] = field(default_factory=dict)  # variable -> the expression it stands for
    views: dict[Any, View] = field(default_factory=dict)  # buffer -> where it lies
    memories: dict[Any, Memory] = field(default_factory=dict)  # pointer -> what it points to


@dataclass(frozen=True)
class Access:
    """An access of ``lanes`` numbers, one after the other from ``base`` on."""

    base: Any
    lanes: int


def contiguous(index: Any, unit: int) -> Access | None:
    """The access that an index into elements of ``unit`` numbers makes; None where its lanes are not neighbours."""
    lanes = index.ty.dtype.lanes
    if lanes == 1:
        return Access(index if unit == 1 else index * unit, unit)
    if type(index).__name__ != "Ramp" or unit != 1:
        return None
    stride = getattr(index.stride, "value", None)
    return Access(index.base, lanes) if stride is not None and int(stride) == 1 else None


def vector_widths(nodes: Sequence[Any]) -> dict[Any, int]:
    """For each buffer made in a kernel of these nodes, the longest vectors (up to 4) that all accesses move whole."""
    bound = {node.var: node.value for node in nodes if type(node).__name__ in ("Bind", "Let")}
    widths: dict[Any, int] = {}
    aliases: set[Any] = {
        node.buffer for node in nodes if type(node).__name__ == "DeclBuffer" and type(node.data).__name__ == "Call"
    }
    for node in nodes:
        if type(node).__name__ not in ("TensorLoad", "BufferStore"):
            continue
        buffer = node.source if type(node).__name__ == "TensorLoad" else node.buffer
        scalar, unit = parse_dtype(str(buffer.ty.dtype.dtype))
        access = contiguous(node.indices[0], unit)
        most = 1
        if access is not None and buffer not in aliases and not scalar.is_bool:
            most = min(_WIDEST, _VECTOR_BYTES // scalar.size, alignment(access.base, bound))
            while access.lanes % most:
                most //= 2
        widths[buffer] = min(widths.get(buffer, _WIDEST), most)
    return widths
