"""Cooperative matrices (SPV_KHR_cooperative_matrix): 16 x 16 or 16 x 8 numbers that a subgroup holds together.

Buffers in TVM's scopes for fragments are arrays of them; the calls of schedules/vulkan/matrices.py work on these. A
lies in memory row by row, B column by column, so that both have neighbouring depths side by side.
"""

from collections.abc import Sequence
from typing import Any

from dspark_compiler.backends.vulkan.arithmetic import Arithmetic
from dspark_compiler.backends.vulkan.emitter import Emitter, Rule
from dspark_compiler.backends.vulkan.memory import Index, Use
from dspark_compiler.backends.vulkan.spirv.numbers import Capability, MatrixLayout, MatrixUse, Op, Scope, Storage
from dspark_compiler.backends.vulkan.spirv.types import UINT32, Scalar, constant, pointer_type, type_id
from dspark_compiler.backends.vulkan.values import Value
from dspark_compiler.schedules.vulkan.matrices import ADD, FEW, FILL, LOAD, MULTIPLY_ADD, SIDE, STORE

KINDS = {  # of matrices in a scope: what for, and their columns
    "wmma.matrix_a": (MatrixUse.A, SIDE),
    "wmma.matrix_b": (MatrixUse.B, SIDE),
    "wmma.accumulator": (MatrixUse.ACCUMULATOR, SIDE),
    "m16n8k8.matrixB": (MatrixUse.B, FEW),
    "m16n8k8.matrixC": (MatrixUse.ACCUMULATOR, FEW),
}
_LAYOUTS = {
    MatrixUse.A: MatrixLayout.ROW_MAJOR,
    MatrixUse.B: MatrixLayout.COLUMN_MAJOR,
    MatrixUse.ACCUMULATOR: MatrixLayout.ROW_MAJOR,
}


class Matrices:
    """An array of matrices, which only the calls below read and write."""

    def __init__(self, arithmetic: Arithmetic, scope: str, scalar: Scalar, length: int) -> None:
        use, columns = KINDS[scope]
        self._do, self.layout, module = arithmetic, _LAYOUTS[use], arithmetic.module
        self._elements = SIDE * columns
        module.require(Capability.COOPERATIVE_MATRIX_KHR, "SPV_KHR_cooperative_matrix")
        numbers = [constant(module, UINT32, number) for number in (Scope.SUBGROUP, SIDE, columns, use)]
        self.type = module.declare(Op.TYPE_COOPERATIVE_MATRIX_KHR, type_id(module, scalar), *numbers)
        array = module.declare(Op.TYPE_ARRAY, self.type, constant(module, UINT32, length // self._elements))
        self._variable = arithmetic.body.variable(pointer_type(module, Storage.FUNCTION, array))

    def pointer(self, scalar: Scalar, index: Index, use: Use) -> int:
        """See Memory: to the matrix whose first element this is."""
        kind = pointer_type(self._do.module, Storage.FUNCTION, self.type)
        return self._do.body.emit(Op.ACCESS_CHAIN, kind, self._variable, index(self._elements).id)

    def load(self, scalar: Scalar, lanes: int, index: Index, aligned: int) -> Value:
        """See Memory; which invocation holds which element is not known."""
        raise ValueError("an element of a matrix is read")

    def store(self, value: Value, index: Index, aligned: int) -> None:
        """See Memory."""
        raise ValueError("an element of a matrix is written")

    def vectors(self, scalar: Scalar, index: Index, aligned: int) -> tuple[int, int, tuple[int, ...]]:
        """See Memory."""
        raise ValueError("elements of a matrix are read")


def has_matrices(nodes: Sequence[Any]) -> bool:
    """Whether a kernel of these nodes holds matrices."""
    return any(type(node).__name__ == "AllocBuffer" and str(node.buffer.ty.storage_scope) in KINDS for node in nodes)


def _matrix(emitter: Emitter, address: Any) -> tuple[int, Matrices]:
    """A pointer to the matrix that an address_of names, and the array it is of."""
    pointer, view = emitter.pointer(address.args[0])
    if not isinstance(view.memory, Matrices):
        raise ValueError(f"{address} is no matrix")
    return pointer, view.memory


def _memory(emitter: Emitter, address: Any, stride: Any) -> tuple[int, int, tuple[int, ...]]:
    """Of a matrix in memory: a pointer to it, the id of the stride of its lines, operands of the access."""
    pointer, width, operands = emitter.vectors(address.args[0])
    if int(stride.value) % width:
        raise ValueError(f"lines of a matrix begin {stride} numbers apart, within vectors of {width}")
    return pointer, emitter.do.constant(UINT32, int(stride.value) // width).id, operands


def _layout(emitter: Emitter, matrices: Matrices) -> int:
    return emitter.do.constant(UINT32, matrices.layout).id


def fill(emitter: Emitter, call: Any) -> None:
    """dspark_matrix_fill(matrix, number): that number in all elements."""
    _, address, number = call.args
    pointer, matrices = _matrix(emitter, address)
    body = emitter.do.body
    body.emit_void(Op.STORE, pointer, body.emit(Op.COMPOSITE_CONSTRUCT, matrices.type, emitter.value(number).id))


def load(emitter: Emitter, call: Any) -> None:
    """dspark_matrix_load(matrix, address, stride): its lines begin ``stride`` numbers apart."""
    _, target, address, stride = call.args
    pointer, matrices = _matrix(emitter, target)
    source, apart, operands = _memory(emitter, address, stride)
    body, layout = emitter.do.body, _layout(emitter, matrices)
    loaded = body.emit(Op.COOPERATIVE_MATRIX_LOAD_KHR, matrices.type, source, layout, apart, *operands)
    body.emit_void(Op.STORE, pointer, loaded)


def store(emitter: Emitter, call: Any) -> None:
    """dspark_matrix_store(address, matrix, stride): the opposite."""
    _, address, source, stride = call.args
    pointer, matrices = _matrix(emitter, source)
    target, apart, operands = _memory(emitter, address, stride)
    body, layout = emitter.do.body, _layout(emitter, matrices)
    held = body.emit(Op.LOAD, matrices.type, pointer)
    body.emit_void(Op.COOPERATIVE_MATRIX_STORE_KHR, target, held, layout, apart, *operands)


def multiply_add(emitter: Emitter, call: Any) -> None:
    """dspark_matrix_multiply_add(sums, a, b): sums += a b."""
    body = emitter.do.body
    places = [_matrix(emitter, address) for address in call.args[1:]]
    sums, a, b = (body.emit(Op.LOAD, matrices.type, pointer) for pointer, matrices in places)
    (target, matrices), *_ = places
    made = body.emit(Op.COOPERATIVE_MATRIX_MUL_ADD_KHR, matrices.type, a, b, sums)
    body.emit_void(Op.STORE, target, made)


def add(emitter: Emitter, call: Any) -> None:
    """dspark_matrix_add(sums, others): sums += others."""
    body = emitter.do.body
    places = [_matrix(emitter, address) for address in call.args[1:]]
    sums, others = (body.emit(Op.LOAD, matrices.type, pointer) for pointer, matrices in places)
    (target, matrices), _ = places
    body.emit_void(Op.STORE, target, body.emit(Op.F_ADD, matrices.type, sums, others))


RULES: dict[str, Rule] = {FILL: fill, LOAD: load, STORE: store, MULTIPLY_ADD: multiply_add, ADD: add}
