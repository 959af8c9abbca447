"""TVM's lowering of scheduled functions to host and device code, as Vulkan needs it.

TVM makes shuffles of reductions over threads for some kinds of target only, of which Vulkan is none, so the pass that
does it sees them as functions for another kind.
"""

from typing import Any

import tvm
from tvm import s_tir
from tvm.tirx import compilation_pipeline

from dspark_compiler.backends.vulkan.indexing import constant_of
from dspark_compiler.backends.vulkan.walk import walk
from dspark_compiler.schedules.tir_lowering import tir_lowering

PIPELINE = "dspark_vulkan"
_SHUFFLING_KIND = "metal"
_FEWEST_LANES = 16  # of a subgroup that TVM reduces over with shuffles


def register_pipeline() -> str:
    """Makes the pipeline known under the name returned, a ``tir_pipeline`` of relax.build and tvm.compile."""
    compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
    return PIPELINE


def _pipeline() -> tuple[Any, Any, Any]:
    """Passes on the module, then those on host functions and on device functions."""
    return (
        tir_lowering(lower_thread_allreduce, whole=False),
        compilation_pipeline.finalize_host_passes,
        compilation_pipeline.finalize_device_passes,
    )


@tvm.transform.module_pass(opt_level=0, name="LowerThreadAllreduceForVulkan")  # type: ignore[untyped-decorator]
def lower_thread_allreduce(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Reductions over threads: shuffles in subgroups where those are wide enough, else sums in shared memory."""
    targets = {}
    for variable, function in list(module.functions.items()):
        target = function.attrs.get("target") if function.attrs else None
        if target is None or target.kind.name != "vulkan" or not _can_shuffle(function, target):
            continue
        targets[variable.name_hint] = target
        lanes = int(target.attrs["thread_warp_size"])
        kind = {"kind": _SHUFFLING_KIND, "thread_warp_size": lanes, "max_threads_per_block": lanes * lanes}
        module.update_func(variable, function.with_attr("target", tvm.target.Target(kind, host=target.host)))
    module = s_tir.transform.LowerThreadAllreduce()(module)
    for variable, function in list(module.functions.items()):
        if variable.name_hint in targets:
            module.update_func(variable, function.with_attr("target", targets[variable.name_hint]))
    return module


def _can_shuffle(function: Any, target: Any) -> bool:
    """Whether subgroups are wide enough, and one of them can take the results of all others."""
    lanes, threads = int(target.attrs.get("thread_warp_size", 1)), 1
    if lanes < _FEWEST_LANES:
        return False
    for node in walk(function.body):
        extent = type(node).__name__ == "AttrStmt" and node.attr_key == "thread_extent"
        if extent and str(node.node.thread_tag).startswith("threadIdx"):
            threads *= constant_of(node.value) or lanes * lanes
    return threads <= lanes * lanes
