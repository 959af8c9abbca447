"""Programmatic dependent launch: a kernel starts while the one before it in the stream still runs.

A kernel that calls ``await_previous`` is launched that way: its blocks may take free places on the chip as soon as
every block of the kernel before has called ``release_next`` (or is done). Before ``await_previous`` it may touch only
what no kernel writes, such as weights; after it, all that earlier kernels wrote is there (PTX ISA, "griddepcontrol").
A kernel that awaits nothing is launched in the ordinary way, after all before it.
"""

import tvm
from tvm import s_tir
from tvm.tirx import compilation_pipeline

from dspark_compiler.schedules.cuda.threads import device, run
from dspark_compiler.schedules.tir_lowering import tir_lowering

PIPELINE = "dspark_cuda"

_AWAIT = "dspark_await_previous"
_LAUNCH_PARAMS = "tirx.kernel_launch_params"
_DEPENDENT = "tirx.use_programtic_dependent_launch"  # spelled as TVM does


def await_previous() -> None:
    """Waits until the kernels before this one are done and what they wrote can be read."""
    source = f"""
__device__ __forceinline__ void {_AWAIT}() {{ asm volatile("griddepcontrol.wait;" ::: "memory"); }}
"""
    run(device(_AWAIT, source=source))


def release_next() -> None:
    """Lets the next kernel's blocks start where there is room."""
    source = """
__device__ __forceinline__ void dspark_release_next() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
"""
    run(device("dspark_release_next", source=source))


@tvm.transform.module_pass(opt_level=0, name="MarkDependentLaunches")  # type: ignore[untyped-decorator]
def mark_dependent_launches(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Sets the launch attribute on every device function that awaits the kernel before it."""
    for variable, function in list(module.functions.items()):
        params = function.attrs.get(_LAUNCH_PARAMS) if function.attrs else None
        if params is not None and _AWAIT in str(function.body):
            # In front: TVM wants the size of dynamic shared memory last.
            module.update_func(variable, function.with_attr(_LAUNCH_PARAMS, [_DEPENDENT, *params]))
    return module


def register_pipeline() -> str:
    """Makes the lowering with ``mark_dependent_launches`` known under the name returned, a ``tir_pipeline``."""

    def pipeline() -> tuple[object, object, object]:
        _, finish_host, finish_device = compilation_pipeline.PIPELINE_MAP["s_tir"]()
        lower = tir_lowering(s_tir.transform.LowerThreadAllreduce(), whole=True)
        return tvm.transform.Sequential([lower, mark_dependent_launches]), finish_host, finish_device

    compilation_pipeline.register_tir_pipeline(PIPELINE, pipeline)
    return PIPELINE
