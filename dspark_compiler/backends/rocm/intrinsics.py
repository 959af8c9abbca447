"""What TVM's AMDGPU code generator does not know, or not exactly: rules that turn it into calls it does."""

from typing import Any

from tvm import tirx
from tvm.tirx.op import register_intrin_lowering

from dspark_compiler.backends.rocm.device_library import BARRIER, XOR_LANES, xor_function

_KIND = "rocm"
_LEVEL = 20  # over TVM's own rules, which are at 10
# Functions of the device libraries in place of the processor's approximations (a sine is 2^-11 off there).
_EXACT = ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "pow", "atan2")
_LANE_BYTES = 4


def register() -> None:
    """Makes TVM lower functions for this target kind by these rules."""
    register_intrin_lowering("tirx.tvm_storage_sync", _KIND, f=_barrier, level=_LEVEL)
    register_intrin_lowering("tirx.tvm_warp_shuffle_xor", _KIND, f=_shuffle_xor, level=_LEVEL)
    for name in _EXACT:
        register_intrin_lowering(f"tirx.{name}", _KIND, f=_exact, level=_LEVEL)


def _barrier(call: Any) -> Any:
    """A barrier that orders memory, too; threads of a wave need none."""
    return tirx.call_extern("void", BARRIER) if call.args[0].value == "shared" else tirx.const(0, "int32")


def _shuffle_xor(call: Any) -> Any:
    """tvm_warp_shuffle_xor(mask, value, distance, width, wave)."""
    value, distance = call.args[1], call.args[2]
    steps = getattr(distance, "value", None)
    dtype = str(value.ty.dtype)
    if dtype not in ("float32", "int32", "uint32"):
        raise ValueError(f"lanes exchange numbers of four bytes, not {dtype}")
    if steps not in XOR_LANES:
        raise ValueError(f"lanes exchange over distances of {XOR_LANES}, not {distance}")
    bits = value if dtype == "int32" else tirx.reinterpret("int32", value)
    moved = tirx.call_pure_extern("int32", xor_function(int(steps)), bits)
    return moved if dtype == "int32" else tirx.reinterpret(dtype, moved)


def _exact(call: Any) -> Any:
    """A function of ocml, number by number."""
    dtype = call.ty.dtype
    name = f"__ocml_{call.op.name.removeprefix('tirx.')}_f{dtype.bits}"
    lanes = int(dtype.lanes)
    if lanes == 1:
        return tirx.call_pure_extern(str(dtype), name, *call.args)
    scalar = str(dtype).split("x")[0]
    parts = [
        tirx.call_pure_extern(scalar, name, *(tirx.Shuffle([arg], [lane]) for arg in call.args))
        for lane in range(lanes)
    ]
    return tirx.Shuffle(parts, list(range(lanes)))
