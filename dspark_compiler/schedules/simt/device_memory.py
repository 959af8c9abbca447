"""What work groups of one launch tell each other through the device's memory: atomic operations and fences.

A target whose code generator knows them says so (``simt_lowering``): backends/vulkan/calls.py, rocm/device_library.py.
"""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.tir import Buffer, Expr


def store_shared(buffer: Buffer, at: Expr, value: Expr) -> None:
    """Stores a float32 for other work groups; ``buffer`` is uint32, since not all devices do this with floats."""
    T.evaluate(T.call_extern("void", "dspark_atomic_store", T.address_of(buffer[at]), T.reinterpret("uint32", value)))


def load_shared(buffer: Buffer, at: Expr) -> Expr:
    """What another work group stored so, if fences and an arrival lie between."""
    return T.reinterpret("float32", T.call_extern("uint32", "dspark_atomic_load", T.address_of(buffer[at])))


def fence() -> None:
    """What was stored before is seen by whoever sees what is stored after."""
    T.evaluate(T.call_extern("void", "dspark_device_fence"))


def arrive(counters: Buffer, number: Expr) -> Expr:
    """Counts one more at a uint32; how many had come before."""
    return T.call_extern("uint32", "dspark_atomic_add", T.address_of(counters[number]), T.uint32(1))


def store_count(counters: Buffer, number: Expr, value: int) -> None:
    """Sets a counter."""
    T.evaluate(T.call_extern("void", "dspark_atomic_store", T.address_of(counters[number]), T.uint32(value)))
