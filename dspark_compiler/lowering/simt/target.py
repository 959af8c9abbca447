"""All that lowering must know of a GPU of any maker."""

from functools import partial

from dspark_compiler.lowering.converters import common_converters
from dspark_compiler.lowering.draft_converters import draft_converters
from dspark_compiler.lowering.importer import Converter, TargetLowering
from dspark_compiler.lowering.pruning_converters import pruning_converters
from dspark_compiler.lowering.simt.attention import Exchange, append_attention, commit_scratch, scratch_attention
from dspark_compiler.lowering.simt.drafting import block_attention, write_ring
from dspark_compiler.lowering.simt.fusions import find_fusions
from dspark_compiler.lowering.simt.linear import linear, lower_epilogue
from dspark_compiler.lowering.simt.sampling import accept, draw, token_probs
from dspark_compiler.lowering.simt.scoring import attention_mass
from dspark_compiler.lowering.simt.tables import cos, select, sin
from dspark_compiler.schedules.simt.kernels import simt_kernels
from dspark_compiler.schedules.simt.row_linears import RowLinears
from dspark_compiler.schedules.simt.stored import STORED


def simt_lowering(dtype: str, exchange: Exchange = Exchange.NONE) -> TargetLowering:
    """Converters and kernels where weights, keys and values are stored as ``dtype``.

    ``exchange``: as far as the code generator knows the functions for it.
    """
    own: dict[str, Converter] = {
        "cos.default": cos,
        "sin.default": sin,
        "select.int": select,
        "linear.default": linear,
        "quantized_linear.default": linear,
        "append_attention.default": partial(append_attention, exchange=exchange),
        "scratch_attention.default": partial(scratch_attention, exchange=exchange),
        "commit_scratch.default": commit_scratch,
        "attention_mass.default": attention_mass,
        "write_ring.default": partial(write_ring, exchange=exchange),
        "block_attention.default": partial(block_attention, exchange=exchange),
        "token_probs.default": partial(token_probs, exchange=exchange),
        "draw.default": draw,
        "accept.default": accept,
    }
    converters = common_converters() | pruning_converters() | draft_converters() | own
    return TargetLowering(converters, find_fusions, lower_epilogue, simt_kernels(STORED[dtype]), RowLinears())
