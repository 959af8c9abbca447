"""What each intrinsic function of TIR becomes."""

from typing import Any

from dspark_compiler.backends.vulkan import math_functions as functions
from dspark_compiler.backends.vulkan import matrices, subgroups, synchronisation
from dspark_compiler.backends.vulkan.emitter import Emitter, Rule
from dspark_compiler.backends.vulkan.math_functions import Function, glsl
from dspark_compiler.backends.vulkan.memory import Use
from dspark_compiler.backends.vulkan.spirv.numbers import BuiltIn, Glsl, Op
from dspark_compiler.backends.vulkan.spirv.types import FLOAT32, INT32, UINT32, parse_dtype
from dspark_compiler.backends.vulkan.values import Value

# Computed in float32.
_FLOAT: dict[str, Function] = {
    "exp": glsl(Glsl.EXP),
    "exp2": glsl(Glsl.EXP2),
    "exp10": functions.exp10,
    "log": glsl(Glsl.LOG),
    "log2": glsl(Glsl.LOG2),
    "log10": functions.log10,
    "log1p": functions.log1p,
    "sqrt": glsl(Glsl.SQRT),
    "rsqrt": glsl(Glsl.INVERSE_SQRT),
    "sin": functions.sine,
    "cos": functions.cosine,
    "tan": functions.tangent,
    "asin": functions.arc_sine,
    "acos": functions.arc_cosine,
    "atan": glsl(Glsl.ATAN),
    "atan2": glsl(Glsl.ATAN2),
    "sinh": glsl(Glsl.SINH),
    "cosh": glsl(Glsl.COSH),
    "tanh": glsl(Glsl.TANH),
    "asinh": glsl(Glsl.ASINH),
    "acosh": glsl(Glsl.ACOSH),
    "atanh": glsl(Glsl.ATANH),
    "erf": functions.error_function,
    "sigmoid": functions.logistic,
    "pow": functions.power,
    "hypot": functions.hypotenuse,
    "copysign": functions.copysign,
    "round": functions.round_away,
    "fmod": lambda do, x, y: do.binary("Mod", x, y),
}
# Computed in the type they are given.
_EXACT: dict[str, Function] = {
    "floor": glsl(Glsl.FLOOR),
    "ceil": glsl(Glsl.CEIL),
    "trunc": glsl(Glsl.TRUNC),
    "nearbyint": glsl(Glsl.ROUND_EVEN),
    "rint": glsl(Glsl.ROUND_EVEN),
    "fabs": glsl(Glsl.F_ABS),
    "fma": glsl(Glsl.FMA),
}
_TESTS: dict[str, Function] = {
    "isnan": functions.is_nan,
    "isinf": functions.is_infinite,
    "isfinite": functions.is_finite,
}


def find_call(call: Any) -> Rule:
    """The rule for a call.

    Raises:
        ValueError: a function Vulkan has nothing for.
    """
    name = str(getattr(call.op, "name", call.op)).split(".")[-1]
    if name in ("call_extern", "call_pure_extern"):
        name = str(call.args[0].value)
        if name not in _RULES and name.endswith("f"):  # C's names for float32
            name = name.removesuffix("f")
    if name not in _RULES:
        raise ValueError(f"no rule for the function {name}")
    return _RULES[name]


def operands(emitter: Emitter, call: Any) -> list[Value]:
    """Values of a call's arguments; a name in front is none."""
    return [emitter.value(arg) for arg in call.args if type(arg).__name__ != "StringImm"]


def _floating(function: Function, exact: bool) -> Rule:
    def rule(emitter: Emitter, call: Any) -> Value:
        given = operands(emitter, call)
        scalar = given[0].scalar
        if scalar.bits > FLOAT32.bits and not exact:
            raise ValueError(f"{call.op} of float64: devices compute functions in 32 bits")
        if exact:
            return function(emitter.do, *given)
        wide = [emitter.do.convert(value, FLOAT32) for value in given]
        return emitter.do.convert(function(emitter.do, *wide), scalar)

    return rule


def _test(function: Function) -> Rule:
    def rule(emitter: Emitter, call: Any) -> Value:
        return function(emitter.do, emitter.do.convert(operands(emitter, call)[0], FLOAT32))

    return rule


def _binary(name: str) -> Rule:
    return lambda emitter, call: emitter.do.binary(name, *operands(emitter, call))


def _first(emitter: Emitter, call: Any) -> Value:
    return operands(emitter, call)[0]


def _nothing(emitter: Emitter, call: Any) -> None:
    return None


def _if_then_else(emitter: Emitter, call: Any) -> Value:
    condition, then, otherwise = call.args
    sides = (lambda: emitter.value(then), lambda: emitter.value(otherwise))
    return emitter.choose(emitter.value(condition), sides, like=call)


def _reinterpret(emitter: Emitter, call: Any) -> Value:
    return emitter.do.bitcast(_first(emitter, call), *parse_dtype(str(call.ty.dtype)))


def _popcount(emitter: Emitter, call: Any) -> Value:
    (value,) = operands(emitter, call)
    bits = emitter.do.convert(value, UINT32) if value.scalar.bits < UINT32.bits else value
    if bits.scalar.bits != UINT32.bits:
        raise ValueError("popcount of 64 bits")
    return emitter.do.convert(emitter.do.map(Op.BIT_COUNT, INT32, bits), parse_dtype(str(call.ty.dtype))[0])


def _leading_zeros(emitter: Emitter, call: Any) -> Value:
    (value,) = operands(emitter, call)
    if value.scalar.bits != UINT32.bits:
        raise ValueError(f"clz of {value.scalar}")
    highest = emitter.do.glsl(Glsl.FIND_U_MSB, value, result=INT32)
    return emitter.do.binary("Sub", emitter.do.constant(INT32, UINT32.bits - 1, value.lanes), highest)


_RULES: dict[str, Rule] = {
    **{name: _floating(function, exact=False) for name, function in _FLOAT.items()},
    **{name: _floating(function, exact=True) for name, function in _EXACT.items()},
    **{name: _test(function) for name, function in _TESTS.items()},
    "if_then_else": _if_then_else,
    "likely": _first,
    "tvm_thread_invariant": _first,
    "assume": _nothing,
    "reinterpret": _reinterpret,
    "popcount": _popcount,
    "clz": _leading_zeros,
    "shift_left": _binary("LShift"),
    "shift_right": _binary("RShift"),
    "truncmod": _binary("Mod"),
    "truncdiv": _binary("Div"),
    "tvm_storage_sync": synchronisation.barrier,
    "tvm_warp_activemask": subgroups.active_mask,
    "tvm_warp_shuffle": subgroups.shuffle,
    "tvm_warp_shuffle_xor": subgroups.shuffle_xor,
    "tvm_warp_shuffle_up": subgroups.shuffle_by("up"),
    "tvm_warp_shuffle_down": subgroups.shuffle_by("down"),
    "dspark_subgroup_size": subgroups.builtin(BuiltIn.SUBGROUP_SIZE),
    "dspark_subgroup_lane": subgroups.builtin(BuiltIn.SUBGROUP_LOCAL_INVOCATION_ID),
    "dspark_subgroup_index": subgroups.builtin(BuiltIn.SUBGROUP_ID),
    "dspark_subgroup_count": subgroups.builtin(BuiltIn.NUM_SUBGROUPS),
    **{f"dspark_subgroup_{name}": subgroups.reduction(name) for name in ("add", "max", "min")},
    **matrices.RULES,
    "atomic_add": synchronisation.atomic("add"),
    "dspark_atomic_load": synchronisation.atomic_load,
    "dspark_atomic_store": synchronisation.atomic_store(Use.EXCHANGES),
    "dspark_own": synchronisation.own,
    "dspark_overlaps": synchronisation.overlaps,
    "dspark_await": synchronisation.await_numbers,
    "dspark_give_up": synchronisation.give_up,
    "dspark_publish": synchronisation.atomic_store(Use.PUBLISHES),
    "dspark_unset": synchronisation.unset,
    "dspark_device_fence": synchronisation.device_fence,
    **{
        f"dspark_atomic_{name}": synchronisation.atomic(name)
        for name in ("add", "max", "min", "and", "or", "xor", "exchange")
    },
}
