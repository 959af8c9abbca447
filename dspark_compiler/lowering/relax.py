"""Program to IRModule: import, then the Relax passes that come before any schedule."""

import tvm
from tvm import relax

from dspark_compiler.graph.program import Program
from dspark_compiler.lowering.cpu.target import cpu_lowering
from dspark_compiler.lowering.cuda.target import cuda_lowering
from dspark_compiler.lowering.destinations import give_destinations
from dspark_compiler.lowering.importer import EntryImporter, TargetLowering
from dspark_compiler.lowering.layout import LayoutPlan
from dspark_compiler.lowering.rocm.target import rocm_lowering
from dspark_compiler.lowering.vulkan.target import vulkan_lowering
from dspark_compiler.schedules.cuda.layouts import FragmentLayouts
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.rocm.layouts import WaveLayouts
from dspark_compiler.schedules.simt.layouts import RowLayouts


def lower(program: Program, plan: LayoutPlan, records: Records | None = None) -> tvm.IRModule:
    """One Relax function an entry point (arguments: inputs, states, params, places of results) and their kernels.

    Kernel templates come scheduled, by ``records`` where they have one; functions that TVM made come unscheduled.

    Raises:
        LoweringError: an operator without a lowering, naming entry point and node.
        InputError: a file of records that cannot be read.
    """
    target = _target(plan)
    module = EntryImporter(program, plan, target, records).module()
    passes = [
        relax.transform.DeadCodeElimination(),
        relax.transform.EliminateCommonSubexpr(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        *([give_destinations] if target.gives_destinations else []),
    ]
    return tvm.transform.Sequential(passes)(module)


def _target(plan: LayoutPlan) -> TargetLowering:
    if isinstance(plan.layouts, FragmentLayouts):
        return cuda_lowering(plan.layouts.dtype, plan.layouts.arch)
    if isinstance(plan.layouts, WaveLayouts):
        return rocm_lowering(plan.layouts.dtype, plan.layouts.arch)
    if isinstance(plan.layouts, RowLayouts):
        return vulkan_lowering(plan.layouts.dtype)
    return cpu_lowering(plan.isa)
