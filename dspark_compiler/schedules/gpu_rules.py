"""Schedule rules for what Relax legalises itself: small elementwise kernels and reductions no template covers."""

from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir import dlight
from tvm.s_tir.dlight.base import ScheduleRule


class Guarded(ScheduleRule):  # type: ignore[misc]
    """A rule of TVM's for functions that reduce; those it stumbles over are left to the next one, as are all others.

    TVM's rules tell functions that reduce nothing only after they normalised them, each rule anew.
    """

    def __init__(self, rule: ScheduleRule) -> None:
        self._rule = rule

    def apply(self, func: tirx.PrimFunc, target: Any, tunable: bool) -> s_tir.Schedule | None:
        """The scheduled function, or None where the rule has none for it."""
        if not _reduces(func):
            return None
        try:
            return self._rule.apply(func, target, tunable)
        except (RuntimeError, ValueError, AssertionError, IndexError):
            return None


def gpu_rules(*, matrix_vector: bool) -> Any:
    """The module pass that schedules every function that does not come with its threads bound.

    Args:
        matrix_vector: whether TVM's rule for matrix-vector products applies; its reductions take warps of 32 threads.
    """
    gpu = dlight.gpu
    rules = [*([gpu.GEMV()] if matrix_vector else []), gpu.Reduction(), gpu.GeneralReduction()]
    return dlight.ApplyDefaultSchedule(*(Guarded(rule) for rule in rules), gpu.Fallback())


def _reduces(func: tirx.PrimFunc) -> bool:
    """Whether a block of a function that nobody scheduled has an axis of a reduction."""
    waiting = [func.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, s_tir.SBlockRealize):
            if any(axis.iter_type == tirx.IterVar.CommReduce for axis in node.block.iter_vars):
                return True
            waiting.append(node.block.body)
        elif isinstance(node, tirx.SeqStmt):
            waiting.extend(node.seq)
        elif isinstance(node, tirx.For):
            waiting.append(node.body)
    return False
