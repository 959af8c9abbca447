"""All that lowering must know of AMD's GPUs."""

from dspark_compiler.lowering.importer import TargetLowering
from dspark_compiler.lowering.simt.target import simt_lowering
from dspark_compiler.schedules.rocm.architectures import Architecture


def rocm_lowering(arch: Architecture) -> TargetLowering:
    """Converters and kernels for a GPU of this architecture."""
    return simt_lowering()
