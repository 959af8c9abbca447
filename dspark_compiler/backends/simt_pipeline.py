"""TVM's lowering of scheduled functions to host and device code, for the kernels of schedules/simt.

It is the order of TVM's own pipeline without what this project's kernels never use.
"""

from typing import Any

import tvm
from tvm import s_tir, tirx

from dspark_compiler.schedules.compaction import compact_buffers


def lowering(lower_thread_allreduce: Any) -> Any:
    """The pass on whole modules; ``lower_thread_allreduce`` is the one within that makes sums over threads."""
    s, t = s_tir.transform, tirx.transform
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
            s.LowerOpaqueBlock(),
            t.FlattenBuffer(),
            t.BF16ComputeLegalize(),
            t.NarrowDataType(32),
            s.LoopPartition(),
            t.VectorizeLoop(True),
            s.InjectVirtualThread(),
            t.StorageRewrite(),
            t.UnrollLoop(),
            t.StmtSimplify(),
            s.RewriteUnsafeSelect(),
            t.CommonSubexprElim(),
            t.FP8ComputeLegalize(),
            t.VerifyMemory(),
            t.AnnotateEntryFunc(),
            s.ThreadSync("shared"),
            s.ThreadSync("warp"),
            lower_thread_allreduce,
            t.SplitHostDevice(),
            t.MakePackedAPI(),
            t.FP8StorageLegalize(),
            t.BF16StorageLegalize(),
        ]
    )
