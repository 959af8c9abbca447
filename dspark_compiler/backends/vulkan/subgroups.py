"""Exchange between the invocations of a subgroup.

TIR's shuffles name a lane within groups of ``width``: those lie whole in a subgroup of any size from ``width`` on, so
a kernel written for 8 lanes runs on a device that has 32.
"""

from typing import Any

from dspark_compiler.backends.vulkan.emitter import Emitter, Rule
from dspark_compiler.backends.vulkan.spirv import numbers
from dspark_compiler.backends.vulkan.spirv.numbers import BuiltIn, Capability, Op, Scope
from dspark_compiler.backends.vulkan.spirv.types import FLOAT32, INT32, UINT32, Scalar
from dspark_compiler.backends.vulkan.values import Value

_RELATIVE = {"up": Op.GROUP_NON_UNIFORM_SHUFFLE_UP, "down": Op.GROUP_NON_UNIFORM_SHUFFLE_DOWN}
_REDUCTIONS = {
    "add": (Op.GROUP_NON_UNIFORM_F_ADD, Op.GROUP_NON_UNIFORM_I_ADD, Op.GROUP_NON_UNIFORM_I_ADD),
    "max": (Op.GROUP_NON_UNIFORM_F_MAX, Op.GROUP_NON_UNIFORM_S_MAX, Op.GROUP_NON_UNIFORM_U_MAX),
    "min": (Op.GROUP_NON_UNIFORM_F_MIN, Op.GROUP_NON_UNIFORM_S_MIN, Op.GROUP_NON_UNIFORM_U_MIN),
}


def shuffle(emitter: Emitter, call: Any) -> Value:
    """tvm_warp_shuffle(mask, value, lane, width, warp size): the value of a lane of this group of ``width``."""
    _, value, lane, width, _ = call.args
    wanted = emitter.value(lane)
    if isinstance(getattr(width, "value", None), int):
        outside = emitter.do.constant(INT32, -int(width.value))
        own = emitter.do.binary("BitwiseAnd", own_lane(emitter), outside)
        inside = emitter.do.binary("BitwiseAnd", wanted, emitter.do.constant(wanted.scalar, int(width.value) - 1))
        wanted = emitter.do.binary("BitwiseOr", own, emitter.do.convert(inside, INT32))
    emitter.do.module.require(Capability.GROUP_NON_UNIFORM_SHUFFLE)
    return _exchange(emitter, Op.GROUP_NON_UNIFORM_SHUFFLE, emitter.value(value), wanted)


def shuffle_xor(emitter: Emitter, call: Any) -> Value:
    """tvm_warp_shuffle_xor(mask, value, lane mask, ...): the value of the lane whose number differs in those bits."""
    value, mask = call.args[1:3]
    emitter.do.module.require(Capability.GROUP_NON_UNIFORM_SHUFFLE)
    return _exchange(emitter, Op.GROUP_NON_UNIFORM_SHUFFLE_XOR, emitter.value(value), emitter.value(mask))


def shuffle_by(direction: str) -> Rule:
    """tvm_warp_shuffle_up and _down(mask, value, delta, ...): undefined where that lane is outside the subgroup."""

    def rule(emitter: Emitter, call: Any) -> Value:
        value, delta = call.args[1:3]
        emitter.do.module.require(Capability.GROUP_NON_UNIFORM_SHUFFLE_RELATIVE)
        return _exchange(emitter, _RELATIVE[direction], emitter.value(value), emitter.value(delta))

    return rule


def active_mask(emitter: Emitter, call: Any) -> Value:
    """tvm_warp_activemask(): only ever given to shuffles, which need none."""
    return emitter.do.constant(UINT32, 0)


def reduction(name: str) -> Rule:
    """dspark_subgroup_NAME(value): of all invocations of the subgroup, in an order the device chooses."""

    def rule(emitter: Emitter, call: Any) -> Value:
        value = emitter.value(call.args[1])
        floating, signed, unsigned = _REDUCTIONS[name]
        op = floating if value.scalar.is_float else signed if value.scalar.signed else unsigned
        emitter.do.module.require(Capability.GROUP_NON_UNIFORM_ARITHMETIC)
        before = (_subgroup(emitter), numbers.GROUP_REDUCE)
        return emitter.do.map(op, value.scalar, value, before=before)

    return rule


def builtin(number: BuiltIn) -> Rule:
    """dspark_subgroup_size(), _lane(), _index() and _count(), as int32."""
    return lambda emitter, call: _builtin(emitter, number)


def own_lane(emitter: Emitter) -> Value:
    """This invocation's number in its subgroup."""
    return _builtin(emitter, BuiltIn.SUBGROUP_LOCAL_INVOCATION_ID)


def _builtin(emitter: Emitter, number: BuiltIn) -> Value:
    do = emitter.do
    do.module.require(Capability.GROUP_NON_UNIFORM)
    variable = do.module.builtin(number, do.type(UINT32))
    return Value(INT32, 1, (do.body.at_entry(lambda: do.body.emit(Op.LOAD, do.type(UINT32), variable)),))


def _exchange(emitter: Emitter, op: Op, value: Value, operand: Value) -> Value:
    """Narrow types travel in 32 bits, which every device shuffles."""
    do, scalar = emitter.do, value.scalar
    wide = scalar
    if scalar.bits < UINT32.bits:
        wide = FLOAT32 if scalar.is_float else Scalar("int" if scalar.signed else "uint", 32)
    value = do.convert(value, wide)
    scope, kind = _subgroup(emitter), do.type(wide)
    index = do.convert(operand, INT32).id
    lanes = [Value(wide, 1, (do.body.emit(op, kind, scope, lane.id, index),)) for lane in do.split(value)]
    return do.convert(do.join(lanes), scalar)


def _subgroup(emitter: Emitter) -> int:
    return emitter.do.constant(UINT32, Scope.SUBGROUP).id
