"""Buffers of blocks are narrowed to what is used; templates stay as they were written."""

import tvm
from tvm import s_tir
from tvm.script import tirx as T
from tvm_ffi import structural_equal

from dspark_compiler.schedules.compaction import compact_buffers
from dspark_compiler.schedules.simt.norm import rms_norm


@T.prim_func(s_tir=True)
def _blocks(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
    doubled = T.sblock_alloc_buffer((8,), "float32")
    for i in range(8):
        with T.sblock("double"):
            at = T.axis.spatial(8, i)
            doubled[at] = x[at] * T.float32(2)
        with T.sblock("add"):
            at = T.axis.spatial(8, i)
            y[at] = doubled[at] + T.float32(1)


def _before() -> tvm.IRModule:
    """A function of blocks and a template, where lowering narrows buffers."""
    functions = {"blocks": _blocks.with_attr("global_symbol", "blocks"), "template": rms_norm("template", 3, 48, 1e-5)}
    s = s_tir.transform
    to_here = [s.LowerInitBlock(), s.PlanAndUpdateBufferAllocationLocation(), s.ConvertBlocksToOpaque()]
    return tvm.transform.Sequential(to_here)(tvm.IRModule(functions))


def test_buffers_of_blocks_are_narrowed() -> None:
    after = compact_buffers(_before())["blocks"]
    assert structural_equal(after, s_tir.transform.CompactBufferAllocation()(_before())["blocks"])
    assert not structural_equal(after, _before()["blocks"])


def test_templates_have_nothing_to_narrow() -> None:
    assert structural_equal(compact_buffers(_before())["template"], _before()["template"])
    assert structural_equal(s_tir.transform.CompactBufferAllocation()(_before())["template"], _before()["template"])
