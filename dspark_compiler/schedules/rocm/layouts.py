"""How weights and states lie on AMD's GPUs: row by row, as schedules/simt has them."""

from dspark_compiler.schedules.rocm.architectures import Architecture
from dspark_compiler.schedules.simt.layouts import RowLayouts


class WaveLayouts(RowLayouts):
    """See RowLayouts; ``arch`` is what kernels are made for."""

    def __init__(self, dtype: str, arch: Architecture) -> None:
        super().__init__(dtype)
        self.arch = arch
