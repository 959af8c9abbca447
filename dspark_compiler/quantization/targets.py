"""Which formats of weights the kernels of a target read."""

from dspark_compiler.config import Target
from dspark_compiler.quantization.weight_format import WeightFormat

_WORD = 8  # columns of four-bit codes that the CPU's kernels read at a time
_CUDA = (WeightFormat("int8"), WeightFormat("float8_e4m3"), WeightFormat("int4", group=128))


def kernels_read(form: WeightFormat, target: Target) -> bool:
    """Whether products with weights of a format have kernels."""
    return form in _CUDA if target == "cuda" else form.codes != "int4" or form.group % _WORD == 0
