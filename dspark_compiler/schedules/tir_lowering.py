"""TVM's lowering of scheduled functions to host and device code, in the order of its own pipeline.

It is written out since ``compact_buffers`` takes the place of a pass within, and sums over threads that of another.
"""

from typing import Any

import tvm
from tvm import s_tir, tirx

from dspark_compiler.schedules.compaction import compact_buffers


def tir_lowering(sums_over_threads: Any, *, whole: bool) -> Any:
    """The pass on whole modules.

    Args:
        sums_over_threads: the pass within that lowers reductions over the threads of a work group.
        whole: with what TVM's rules for CPUs and Nvidia's GPUs use beside what kernels of ``schedules/simt`` do:
            conditions out of loops, software pipelines, fragments, shared memory of a size known at launch.
    """
    s, t = s_tir.transform, tirx.transform

    def if_whole(*passes: Any) -> tuple[Any, ...]:
        return passes if whole else ()

    return tvm.transform.Sequential(
        [
            s.CanonicalizeLoop(),
            s.LowerCrossThreadReduction(),
            s.LowerInitBlock(),
            s.PlanAndUpdateBufferAllocationLocation(),
            s.ConvertBlocksToOpaque(),
            s.LiftThreadBinding(),
            s.ManifestSharedMemoryLocalStage(),
            compact_buffers,
            s.LowerAutoCopy(),
            s.UnifyThreadBinding(),
            s.LowerMatchBuffer(),
            s.StmtSimplify(),
            *if_whole(s.InjectPermutedLayout(), s.AnnotateIrregularLoop()),
            *if_whole(s.InjectSoftwarePipeline(), s.TransformMmaBufferLayout()),
            s.LowerOpaqueBlock(),
            t.FlattenBuffer(),
            t.BF16ComputeLegalize(),
            t.NarrowDataType(32),
            s.LoopPartition(),
            t.VectorizeLoop(True),
            s.InjectVirtualThread(),
            *if_whole(s.InjectDoubleBuffer()),
            t.StorageRewrite(),
            *if_whole(s.HoistIfThenElse()),
            t.UnrollLoop(),
            *if_whole(s.RenormalizeSplitPattern()),
            t.StmtSimplify(),
            *if_whole(t.RemoveNoOp()),
            s.RewriteUnsafeSelect(),
            t.CommonSubexprElim(),
            t.FP8ComputeLegalize(),
            t.VerifyMemory(),
            t.AnnotateEntryFunc(),
            s.ThreadSync("shared"),
            *if_whole(s.ThreadSync("shared.dyn")),
            s.ThreadSync("warp"),
            *if_whole(s.InferFragment()),
            sums_over_threads,
            *if_whole(s.MergeSharedMemoryAllocations()),
            t.SplitHostDevice(),
            t.MakePackedAPI(),
            t.FP8StorageLegalize(),
            t.BF16StorageLegalize(),
        ]
    )
