"""One device function as one compute shader."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dspark_compiler.backends.vulkan.arguments import ArgumentBlock
from dspark_compiler.backends.vulkan.arithmetic import Arithmetic
from dspark_compiler.backends.vulkan.expressions import Expressions
from dspark_compiler.backends.vulkan.matrices import has_matrices
from dspark_compiler.backends.vulkan.scope import Scope, vector_widths
from dspark_compiler.backends.vulkan.spirv.body import Body
from dspark_compiler.backends.vulkan.spirv.module import Module
from dspark_compiler.backends.vulkan.spirv.numbers import Capability
from dspark_compiler.backends.vulkan.statements import Statements
from dspark_compiler.backends.vulkan.walk import walk
from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.vulkan.matrices import SUBGROUP

_LAUNCH_PARAMS = "tirx.kernel_launch_params"
_FEATURES = {
    Capability.FLOAT16: "float16",
    Capability.FLOAT64: "float64",
    Capability.INT8: "int8",
    Capability.INT16: "int16",
    Capability.INT64: "int64",
    Capability.INT64_ATOMICS: "atomic_int64",
    Capability.STORAGE_BUFFER8_BIT_ACCESS: "storage8",
    Capability.STORAGE_BUFFER16_BIT_ACCESS: "storage16",
    Capability.GROUP_NON_UNIFORM: "subgroup_basic",
    Capability.GROUP_NON_UNIFORM_VOTE: "subgroup_vote",
    Capability.GROUP_NON_UNIFORM_BALLOT: "subgroup_ballot",
    Capability.GROUP_NON_UNIFORM_SHUFFLE: "subgroup_shuffle",
    Capability.GROUP_NON_UNIFORM_SHUFFLE_RELATIVE: "subgroup_shuffle_relative",
    Capability.GROUP_NON_UNIFORM_ARITHMETIC: "subgroup_arithmetic",
    Capability.ATOMIC_FLOAT32_ADD_EXT: "atomic_float32_add",
    Capability.COOPERATIVE_MATRIX_KHR: "cooperative_matrix",
    Capability.VULKAN_MEMORY_MODEL: "memory_model",
}


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel and all that launching it takes."""

    name: str
    code: bytes
    arguments: ArgumentBlock
    launch: tuple[str, ...]
    workgroup: tuple[int, int, int]
    shared_bytes: int
    features: tuple[str, ...]
    subgroup: int  # invocations of each; 0: any number


def compile_kernel(name: str, function: Any) -> Kernel:
    """The shader of a lowered device function.

    Raises:
        LoweringError: the function does something Vulkan has nothing for.
    """
    try:
        return _compile(name, function)
    except ValueError as error:
        raise LoweringError(f"--target vulkan: kernel {name}: {error}") from error


def _compile(name: str, function: Any) -> Kernel:
    module = Module()
    body = Body(module)
    module.name(body.function, name)
    do, scope = Arithmetic(body), Scope()
    nodes = list(walk(function.body))
    waits = _waits(nodes)
    arguments = ArgumentBlock.of(function.params, waits=waits)
    arguments.bind(do, scope, function.params)
    matrices = has_matrices(nodes)
    if matrices:
        module.require(Capability.VULKAN_MEMORY_MODEL)
    expressions = Expressions(do, scope, ordered_buffers=waits or _rereads_buffers(nodes))
    statements = Statements(expressions, vector_widths(nodes))
    statements.emit(function.body)
    workgroup = (statements.workgroup[0], statements.workgroup[1], statements.workgroup[2])
    code = module.words(body.function, workgroup, body.words())
    return Kernel(
        name,
        code,
        arguments,
        tuple(str(tag) for tag in function.attrs[_LAUNCH_PARAMS]),
        workgroup,
        statements.shared_bytes,
        tuple(sorted(_FEATURES[c] for c in module.capabilities if c in _FEATURES)),
        SUBGROUP if matrices else 0,
    )


def _waits(nodes: Sequence[Any]) -> bool:
    """Whether a kernel reads what comes while it runs."""
    return any(type(node).__name__ == "StringImm" and node.value == "dspark_await" for node in nodes)


def _rereads_buffers(nodes: Sequence[Any]) -> bool:
    """Whether a kernel of these nodes reads buffers that it writes."""
    owners: dict[Any, Any] = {}
    read, written = set(), set()
    for node in nodes:
        kind = type(node).__name__
        if kind == "DeclBuffer":
            owners[node.buffer] = node.data
        elif kind == "TensorLoad":
            read.add(node.source)
        elif kind == "BufferStore":
            written.add(node.buffer)
    return bool({owners[b] for b in read if b in owners} & {owners[b] for b in written if b in owners})
