"""Schedule rules for what Relax legalises itself: small elementwise kernels and reductions no template covers."""

from typing import Any

from tvm.s_tir import dlight


def gpu_rules() -> Any:
    """The module pass that schedules every function that does not come with its threads bound."""
    gpu = dlight.gpu
    return dlight.ApplyDefaultSchedule(gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
