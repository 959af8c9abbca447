"""Buffers narrowed to what is used of them, in the functions where that can find something."""

import tvm
from tvm import s_tir, tirx


@tvm.transform.module_pass(opt_level=0, name="CompactBuffersOfBlocks")  # type: ignore[untyped-decorator]
def compact_buffers(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """TVM's CompactBufferAllocation of functions made of blocks, as schedule rules leave them.

    A template has no blocks and allocates what it uses; to find that out anew costs seconds where it is unrolled.
    """
    functions = {
        variable: function
        for variable, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc) and isinstance(function.body, s_tir.stmt.SBlockRealize)
    }
    narrowed = s_tir.transform.CompactBufferAllocation()(tvm.IRModule(functions))
    for variable in functions:
        module.update_func(variable, narrowed[variable])
    return module
