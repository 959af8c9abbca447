"""Which formats of weights the kernels of a target read."""

from dspark_compiler.config import Target
from dspark_compiler.quantization.weight_format import WeightFormat

_WORD = 8  # columns that the CPU's kernels for four-bit codes, and all of a GPU that is not Nvidia's, read at a time
_UNIT = 32  # columns that a step of tensor cores takes


def kernels_read(form: WeightFormat, target: Target, depth: int) -> bool:
    """Whether products with weights of a format and so many columns have kernels."""
    if target == "cuda":
        return not (form.group or form.offsets or form.codes == "int4") or form.columns(depth) % _UNIT == 0
    if target in ("vulkan", "rocm"):
        return form.group % _WORD == 0
    return form.codes != "int4" or form.group % _WORD == 0
