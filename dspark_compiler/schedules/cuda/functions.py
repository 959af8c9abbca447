"""Functions of CUDA's mathematical library in float32, errors of one or two units in the last place.

They are calls, which TVM does not write out again wherever their value is used.
"""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import device
from dspark_compiler.schedules.tir import Expr


def exp(x: Expr) -> Expr:
    """The exponential."""
    source = """
__device__ __forceinline__ float dspark_exp(float x) { return expf(x); }
"""
    return T.Bind(device("dspark_exp", x, source=source, returns="float32"))


def tanh(x: Expr) -> Expr:
    """The hyperbolic tangent."""
    source = """
__device__ __forceinline__ float dspark_tanh(float x) { return tanhf(x); }
"""
    return T.Bind(device("dspark_tanh", x, source=source, returns="float32"))
