"""Schedule rules for what Relax legalises itself: fused elementwise kernels, and reductions no template covers."""

from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir import dlight
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.s_tir.dlight.base import ScheduleRule, try_inline

from dspark_compiler.schedules.isa import VectorIsa

# Elements below which waking the other threads costs more than it saves (about 2 us a wake-up).
_MIN_PARALLEL = 16384


class Elementwise(ScheduleRule):  # type: ignore[misc]
    """All injective blocks inlined into the last; its loops fused, the inner one a vector, the outer one parallel."""

    def __init__(self, isa: VectorIsa) -> None:
        self._lanes = isa.lanes

    def apply(self, func: tirx.PrimFunc, target: Any, _: bool) -> s_tir.Schedule | None:
        """The scheduled function, or None where a block is not injective or an extent not static."""
        schedule = s_tir.Schedule(func)
        blocks = normalize_prim_func(schedule)
        if not blocks or not all(block.is_injective() for block in blocks):
            return None
        blocks = try_inline(schedule, blocks)
        for block in blocks:
            extents = [int(loop.dom) for loop in block.iters if isinstance(loop.dom, int | tirx.IntImm)]
            if len(extents) != len(block.iters) or 0 in extents:
                return None
            self._schedule_block(schedule, block.block_rv, extents)
        return schedule

    def _schedule_block(self, schedule: s_tir.Schedule, block: Any, extents: list[int]) -> None:
        loops = schedule.get_loops(block)
        if not loops:
            return
        lanes = self._lanes
        while extents[-1] % lanes:
            lanes //= 2
        elements = 1
        for extent in extents:
            elements *= extent
        outer, inner = schedule.split(loops[-1], factors=[None, lanes])
        fused = schedule.fuse(*loops[:-1], outer)
        if lanes > 1:
            schedule.vectorize(inner)
        if elements >= _MIN_PARALLEL:
            schedule.parallel(fused)


class ParallelReduction(ScheduleRule):  # type: ignore[misc]
    """Whatever else has big leading spatial loops: those run in parallel, block by block."""

    def apply(self, func: tirx.PrimFunc, target: Any, _: bool) -> s_tir.Schedule | None:
        """The scheduled function, or None where nothing is worth a parallel loop."""
        schedule = s_tir.Schedule(func)
        blocks = normalize_prim_func(schedule)
        if not blocks:
            return None
        changed = False
        for block in blocks:
            kinds = block.dom_kind()
            spatial = len(kinds) - len(kinds.lstrip("S"))
            extents = [loop.dom for loop in block.iters]
            if not spatial or not all(isinstance(e, int | tirx.IntImm) for e in extents):
                continue
            elements = 1
            for extent in extents:
                elements *= int(extent)
            loops = schedule.get_loops(block.block_rv)
            if elements >= _MIN_PARALLEL and len(loops) == len(extents):
                schedule.parallel(schedule.fuse(*loops[:spatial]))
                changed = True
        return schedule if changed else None


def default_rules(isa: VectorIsa) -> Any:
    """The module pass that schedules every function a template or a tuning record has not scheduled."""
    return dlight.ApplyDefaultSchedule(Elementwise(isa), ParallelReduction())
