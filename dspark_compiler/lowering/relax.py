"""Program to IRModule: import, then the Relax passes that come before any schedule."""

import tvm
from tvm import relax

from dspark_compiler.graph.program import Program
from dspark_compiler.lowering.converters import cpu_converters, lower_epilogue
from dspark_compiler.lowering.draft_converters import draft_converters
from dspark_compiler.lowering.elementwise import elementwise_converters
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import LayoutPlan
from dspark_compiler.lowering.pruning_converters import pruning_converters
from dspark_compiler.schedules.database import Records


def lower(program: Program, plan: LayoutPlan, records: Records | None = None) -> tvm.IRModule:
    """One Relax function an entry point (arguments: inputs, states, params) and the kernels they call.

    Kernel templates come scheduled, by ``records`` where they have one; functions that TVM made come unscheduled.

    Raises:
        LoweringError: an operator without a lowering, naming entry point and node.
        InputError: a file of records that cannot be read.
    """
    converters = cpu_converters() | elementwise_converters() | pruning_converters() | draft_converters()
    module = EntryImporter(program, plan, converters, lower_epilogue, records).module()
    passes = [
        relax.transform.DeadCodeElimination(),
        relax.transform.EliminateCommonSubexpr(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]
    return tvm.transform.Sequential(passes)(module)
