"""All that lowering must know of an Nvidia GPU."""

from dspark_compiler.lowering.converters import common_converters
from dspark_compiler.lowering.cuda.attention import append_attention, commit_scratch, scratch_attention
from dspark_compiler.lowering.cuda.drafting import block_attention, write_ring
from dspark_compiler.lowering.cuda.drawing import draw, token_probs
from dspark_compiler.lowering.cuda.fusions import find_fusions
from dspark_compiler.lowering.cuda.linear import linear, lower_epilogue
from dspark_compiler.lowering.cuda.norm import rms_norm
from dspark_compiler.lowering.draft_converters import draft_converters
from dspark_compiler.lowering.importer import TargetLowering
from dspark_compiler.lowering.pruning_converters import pruning_converters
from dspark_compiler.schedules.cuda.fragment_linears import FragmentLinears
from dspark_compiler.schedules.cuda.kernels import cuda_kernels


def cuda_lowering(dtype: str, arch: str) -> TargetLowering:
    """Converters and kernels for a GPU of this architecture where ``dtype`` is computed with."""
    own = {
        "linear.default": linear,
        "quantized_linear.default": linear,
        "rms_norm.default": rms_norm,
        "append_attention.default": append_attention,
        "scratch_attention.default": scratch_attention,
        "commit_scratch.default": commit_scratch,
        "block_attention.default": block_attention,
        "write_ring.default": write_ring,
        "token_probs.default": token_probs,
        "draw.default": draw,
    }
    converters = common_converters() | pruning_converters() | draft_converters() | own
    return TargetLowering(converters, find_fusions, lower_epilogue, cuda_kernels(dtype), FragmentLinears(arch))
