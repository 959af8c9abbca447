"""What the 32 threads of a warp tell each other, every lane taking part."""

from typing import Literal

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import WARP, device
from dspark_compiler.schedules.tir import Expr

Combine = Literal["add", "max", "min"]

_C_TYPE = {"float32": "float", "float64": "double", "int32": "int"}


def reduce_int32(value: Expr, how: Combine) -> Expr:
    """The sum, maximum or minimum of int32 ``value`` (PTX ISA, "redux.sync")."""
    name = f"dspark_warp_{how}"
    source = f"""
__device__ __forceinline__ int {name}(int value) {{ return __reduce_{how}_sync(0xffffffffu, value); }}
"""
    return T.Bind(device(name, value, source=source, returns="int32"))


def add_int64(value: Expr) -> Expr:
    """The sum of ``value``, not negative and below 2^58."""
    source = """
__device__ __forceinline__ long long dspark_warp_add_int64(long long value) {
  unsigned low = value & 0xffffff, middle = (value >> 24) & 0xffffff, high = value >> 48;
  return (long long)__reduce_add_sync(0xffffffffu, low)
    + ((long long)__reduce_add_sync(0xffffffffu, middle) << 24)
    + ((long long)__reduce_add_sync(0xffffffffu, high) << 48);
}
"""
    return T.Bind(device("dspark_warp_add_int64", value, source=source, returns="int64"))


def reduce_float(value: Expr, how: Combine = "add", *, dtype: str = "float32", width: int = WARP) -> Expr:
    """The sum, maximum or minimum over each ``width`` lanes, a power of two, in an order that is always the same."""
    kind, name = _C_TYPE[dtype], f"dspark_warp_{how}_{dtype}"
    combined = {"add": "value + other", "max": "max(value, other)", "min": "min(value, other)"}[how]
    source = f"""
__device__ __forceinline__ {kind} {name}({kind} value, int width) {{
  #pragma unroll
  for (int apart = width / 2; apart; apart /= 2) {{
    {kind} other = __shfl_xor_sync(0xffffffffu, value, apart);
    value = {combined};
  }}
  return value;
}}
"""
    return T.Bind(device(name, value, width, source=source, returns=dtype))


def running_sum(value: Expr) -> Expr:
    """The sum of float64 ``value`` over this lane and those before it."""
    source = """
__device__ __forceinline__ double dspark_running_sum(double value) {
  int lane = threadIdx.x % 32;
  #pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    double other = __shfl_up_sync(0xffffffffu, value, apart);
    if (lane >= apart) value += other;
  }
  return value;
}
"""
    return T.Bind(device("dspark_running_sum", value, source=source, returns="float64"))


def from_lane(value: Expr, lane: Expr, dtype: str) -> Expr:
    """What ``value`` is in another lane."""
    kind, name = _C_TYPE[dtype], f"dspark_from_lane_{dtype}"
    source = f"""
__device__ __forceinline__ {kind} {name}({kind} value, int lane) {{
  return __shfl_sync(0xffffffffu, value, lane);
}}
"""
    return T.Bind(device(name, value, lane, source=source, returns=dtype))


def first_lane(condition: Expr) -> Expr:
    """The first lane in which ``condition`` holds; -1 if there is none."""
    source = """
__device__ __forceinline__ int dspark_first_lane(bool condition) {
  return __ffs(__ballot_sync(0xffffffffu, condition)) - 1;
}
"""
    return T.Bind(device("dspark_first_lane", condition, source=source, returns="int32"))
