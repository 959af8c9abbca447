"""All that lowering must know of AMD's GPUs."""

import dataclasses
from functools import partial

from dspark_compiler.lowering.importer import TargetLowering
from dspark_compiler.lowering.simt.attention import Exchange
from dspark_compiler.lowering.simt.target import simt_lowering
from dspark_compiler.schedules.gpu.kernels import Template
from dspark_compiler.schedules.rocm.architectures import Architecture
from dspark_compiler.schedules.rocm.matrix_linear import matrix_tile
from dspark_compiler.schedules.simt.stream_linear import stream_linear


def rocm_lowering(dtype: str, arch: Architecture) -> TargetLowering:
    """Converters and kernels for a GPU of this architecture: those for all, with matrix instructions."""
    common = simt_lowering(dtype, Exchange.WITHIN_LAUNCHES)
    linears: dict[str, Template] = {
        "stream_linear": partial(stream_linear, in_order=arch.asks_ahead),
        "tile_linear": matrix_tile(arch, dtype),
    }
    return dataclasses.replace(common, kernels={**common.kernels, **linears})
