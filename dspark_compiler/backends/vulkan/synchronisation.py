"""Barriers and atomic operations."""

from typing import Any

from dspark_compiler.backends.vulkan.arithmetic import Arithmetic
from dspark_compiler.backends.vulkan.emitter import Emitter, Rule
from dspark_compiler.backends.vulkan.memory import WHOLE_DEVICE, ChipMemory, Use
from dspark_compiler.backends.vulkan.spirv import numbers
from dspark_compiler.backends.vulkan.spirv.numbers import Capability, Op, Scope
from dspark_compiler.backends.vulkan.spirv.types import FLOAT32, INT32, UINT32, parse_dtype, told_constant
from dspark_compiler.backends.vulkan.values import Value

# The number of the constant by which the runtime tells whether launches overlap (vulkan_runtime/pipeline.cc).
OVERLAPS = 0

# Scope of each barrier TIR knows within a work group.
_BARRIERS = {"shared": Scope.WORKGROUP, "shared.dyn": Scope.WORKGROUP, "warp": Scope.SUBGROUP}
# Instructions for floats, signed and unsigned integers.
_ATOMICS: dict[str, tuple[Op | None, Op, Op]] = {
    "add": (Op.ATOMIC_F_ADD_EXT, Op.ATOMIC_I_ADD, Op.ATOMIC_I_ADD),
    "max": (None, Op.ATOMIC_S_MAX, Op.ATOMIC_U_MAX),
    "min": (None, Op.ATOMIC_S_MIN, Op.ATOMIC_U_MIN),
    "and": (None, Op.ATOMIC_AND, Op.ATOMIC_AND),
    "or": (None, Op.ATOMIC_OR, Op.ATOMIC_OR),
    "xor": (None, Op.ATOMIC_XOR, Op.ATOMIC_XOR),
    "exchange": (Op.ATOMIC_EXCHANGE, Op.ATOMIC_EXCHANGE, Op.ATOMIC_EXCHANGE),
}


def barrier(emitter: Emitter, call: Any) -> None:
    """tvm_storage_sync(scope): all that was written before is seen after, by those who meet here."""
    name = str(call.args[0].value)
    if name not in _BARRIERS:
        raise ValueError(f"a barrier of scope {name} reaches beyond a work group; split the kernel")
    do, scope = emitter.do, _BARRIERS[name]
    if scope is Scope.SUBGROUP:
        do.module.require(Capability.GROUP_NON_UNIFORM)
    semantics = numbers.ACQUIRE_RELEASE | numbers.WORKGROUP_MEMORY
    if emitter.ordered_buffers:
        semantics |= numbers.UNIFORM_MEMORY
    if do.module.has_vulkan_memory_model:
        semantics |= numbers.MAKE_AVAILABLE_AND_VISIBLE
    who = do.constant(UINT32, scope).id
    do.body.emit_void(Op.CONTROL_BARRIER, who, who, do.constant(UINT32, semantics).id)


def atomic(name: str) -> Rule:
    """dspark_atomic_NAME(address_of(buffer[i]), value): what was there before; orders nothing else."""

    def rule(emitter: Emitter, call: Any) -> Value:
        address, operand = call.args[-2:]
        value = emitter.value(operand)
        floating, signed, unsigned = _ATOMICS[name]
        op = floating if value.scalar.is_float else signed if value.scalar.signed else unsigned
        if op is None:
            raise ValueError(f"no atomic {name} on {value.scalar}")
        return _emit(emitter, op, _target(address), value)

    return rule


def atomic_load(emitter: Emitter, call: Any) -> Value:
    """dspark_atomic_load(address_of(buffer[i])): what any invocation of the device stored there by atomic_store."""
    return _load_atomically(emitter, call, Use.EXCHANGES)


def _load_atomically(emitter: Emitter, call: Any, use: Use) -> Value:
    do, (pointer, view) = emitter.do, emitter.pointer(_target(call.args[-1]), use)
    scope, relaxed = _whole_device(do), do.constant(UINT32, 0).id
    return Value(view.scalar, 1, (do.body.emit(Op.ATOMIC_LOAD, do.type(view.scalar), pointer, scope, relaxed),))


def await_numbers(emitter: Emitter, call: Any) -> Value:
    """dspark_await(address_of(buffer[i])): what a launch stores there that may be running (schedules/simt/awaited.py).

    Of several neighbours each is what was there at some time, not all at the same.
    """
    if parse_dtype(str(call.ty.dtype))[1] == 1:
        return _load_atomically(emitter, call, Use.AWAITS)
    return emitter.load_written(_target(call.args[-1]))


def overlaps(emitter: Emitter, call: Any) -> Value:
    """dspark_overlaps(): 1 where launches overlap, else 0; constant to the driver, which leaves the other way out."""
    return Value(INT32, 1, (told_constant(emitter.do.module, OVERLAPS, 0),))


def own(emitter: Emitter, call: Any) -> None:
    """dspark_own(address_of(buffer[i])): nothing; the argument's memory is exchanged, though no operation is atomic."""
    emitter.pointer(_target(call.args[-1]), Use.EXCHANGES)


def atomic_store(use: Use) -> Rule:
    """dspark_atomic_store(address_of(buffer[i]), value): orders nothing else.

    dspark_publish likewise, for launches that await it; as the value may come two float16 from an even place on.
    """

    def rule(emitter: Emitter, call: Any) -> None:
        do, target, value = emitter.do, _target(call.args[-2]), emitter.value(call.args[-1])
        is_pair = str(target.source.dtype) == "float16" and value.scalar == FLOAT32
        pointer, view = emitter.pointer(target, use, value.scalar if is_pair else None)
        if not is_pair and view.scalar != value.scalar:
            raise ValueError(f"an atomic operation with {value.scalar} on {view.scalar}")
        scope, relaxed = _whole_device(do), do.constant(UINT32, 0).id
        do.body.emit_void(Op.ATOMIC_STORE, pointer, scope, relaxed, value.id)

    return rule


def unset(emitter: Emitter, call: Any) -> None:
    """dspark_unset(address_of(buffer[i]), value): before others are told by that memory."""
    emitter.unset(_target(call.args[-2]), emitter.value(call.args[-1]))


def give_up(emitter: Emitter, call: Any) -> None:
    """dspark_give_up(): the runtime is to know that a dspark_await has not come to an end."""
    do = emitter.do
    scope, relaxed, one = _whole_device(do), do.constant(UINT32, 0).id, do.constant(UINT32, 1).id
    do.body.emit_void(Op.ATOMIC_STORE, emitter.given_up(), scope, relaxed, one)


def device_fence(emitter: Emitter, call: Any) -> None:
    """dspark_device_fence(): atomic operations before and after it are seen in this order by the whole device."""
    do = emitter.do
    semantics = do.constant(UINT32, numbers.ACQUIRE_RELEASE | numbers.UNIFORM_MEMORY).id
    do.body.emit_void(Op.MEMORY_BARRIER, _whole_device(do), semantics)


def _whole_device(do: Arithmetic) -> int:
    """The scope in which all see an operation."""
    return do.constant(UINT32, WHOLE_DEVICE if do.module.has_vulkan_memory_model else Scope.DEVICE).id


def _target(address: Any) -> Any:
    """The load whose element an address_of names."""
    inner = getattr(address, "args", [None])[0]
    if type(inner).__name__ != "TensorLoad":
        raise ValueError(f"an atomic operation on {address} instead of the address of an element")
    return inner


def _emit(emitter: Emitter, op: Op, load: Any, value: Value) -> Value:
    do = emitter.do
    pointer, view = emitter.pointer(load)
    if view.scalar != value.scalar:
        raise ValueError(f"an atomic operation with {value.scalar} on {view.scalar}")
    if op is Op.ATOMIC_F_ADD_EXT:
        do.module.require(Capability.ATOMIC_FLOAT32_ADD_EXT, "SPV_EXT_shader_atomic_float_add")
    if value.scalar.bits == 64:
        do.module.require(Capability.INT64_ATOMICS)
    on_chip = isinstance(view.memory, ChipMemory)
    scope = do.constant(UINT32, Scope.WORKGROUP).id if on_chip else _whole_device(do)
    result = do.body.emit(op, do.type(value.scalar), pointer, scope, do.constant(UINT32, 0).id, value.id)
    return Value(value.scalar, 1, (result,))
