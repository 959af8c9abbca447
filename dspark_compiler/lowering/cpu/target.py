"""All that lowering must know of a CPU."""

from dspark_compiler.lowering.converters import common_converters
from dspark_compiler.lowering.cpu.attention import append_attention, commit_scratch, scratch_attention
from dspark_compiler.lowering.cpu.elementwise import elementwise_converters
from dspark_compiler.lowering.cpu.linear import linear, lower_epilogue
from dspark_compiler.lowering.draft_converters import draft_converters
from dspark_compiler.lowering.epilogues import find_epilogues
from dspark_compiler.lowering.importer import TargetLowering
from dspark_compiler.lowering.pruning_converters import pruning_converters
from dspark_compiler.schedules.cpu_kernels import cpu_kernels
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.panel_linears import PanelLinears


def cpu_lowering(isa: VectorIsa) -> TargetLowering:
    """Converters and kernels for a CPU with these vectors."""
    own = {
        "linear.default": linear,
        "quantized_linear.default": linear,
        "append_attention.default": append_attention,
        "scratch_attention.default": scratch_attention,
        "commit_scratch.default": commit_scratch,
    }
    converters = common_converters() | elementwise_converters() | pruning_converters() | draft_converters() | own
    kernels, linears = cpu_kernels(isa), PanelLinears(isa)
    return TargetLowering(converters, find_epilogues, lower_epilogue, kernels, linears, gives_destinations=False)
