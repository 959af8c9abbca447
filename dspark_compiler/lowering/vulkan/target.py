"""All that lowering must know of Vulkan devices."""

import dataclasses

from dspark_compiler.lowering.importer import TargetLowering
from dspark_compiler.lowering.simt.target import simt_lowering
from dspark_compiler.schedules.vulkan.tile_linear import tile_linear


def vulkan_lowering(dtype: str) -> TargetLowering:
    """Converters and kernels for any GPU, and products of many rows that use cooperative matrices where there are any.

    With float32 they do not: its promise is eager's tokens, and cooperative matrices round to float16.
    """
    common = simt_lowering(dtype, atomics=True)
    if dtype == "float32":
        return common
    return dataclasses.replace(common, kernels={**common.kernels, "tile_linear": tile_linear})
