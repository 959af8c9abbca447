"""Whether launches run beside those whose results they await, which the host asks at each launch."""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.tir import Expr

OVERLAPS = "dspark.vulkan.overlaps"  # of the runtime: threads of a work group -> whether, and the device takes so many


def overlaps(threads: int) -> Expr:
    """Host code's question."""
    return T.call_packed(OVERLAPS, T.int32(threads)) != 0
