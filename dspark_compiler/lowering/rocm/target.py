"""All that lowering must know of AMD's GPUs."""

import dataclasses

from dspark_compiler.lowering.importer import TargetLowering
from dspark_compiler.lowering.simt.target import simt_lowering
from dspark_compiler.schedules.rocm.architectures import Architecture
from dspark_compiler.schedules.rocm.matrix_linear import matrix_tile


def rocm_lowering(dtype: str, arch: Architecture) -> TargetLowering:
    """Converters and kernels for a GPU of this architecture: those for all, with matrix instructions."""
    common = simt_lowering(dtype, atomics=True)
    return dataclasses.replace(common, kernels={**common.kernels, "tile_linear": matrix_tile(arch, dtype)})
