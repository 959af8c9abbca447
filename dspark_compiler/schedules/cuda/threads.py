"""A thin layer over TVM's TIR builder for GPU kernels: grids, shared memory, barriers, device functions."""

from tvm.backend.cuda.op import cuda_func_call
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.gpu.threads import array, barrier, launch
from dspark_compiler.schedules.tir import Buffer, Expr

__all__ = ["WARP", "address", "barrier", "device", "launch", "registers", "run", "shared"]

WARP = 32


def registers(shape: int | tuple[int, ...], dtype: str = "float32") -> Buffer:
    """An array private to a thread; index it with constants, or it leaves the registers."""
    return _whole(array(shape, dtype, "local"))


def shared(shape: int | tuple[int, ...], dtype: str = "float32", *, dynamic: bool = False) -> Buffer:
    """An array of the block's; more than 48 KB in all have to be ``dynamic``."""
    return _whole(array(shape, dtype, "shared.dyn" if dynamic else "shared"))


def _whole(buffer: Buffer) -> Buffer:
    """The array, kept at its size: TVM cuts it down to what it sees used, of what a device function gets the first."""
    source = """
__device__ __forceinline__ void dspark_use(const void*) {}
"""
    run(device("dspark_use", address(buffer, *(extent - 1 for extent in buffer.shape)), source=source))
    return buffer


def address(buffer: Buffer, *index: Expr) -> Expr:
    """Pointer to an element; without an index to the first."""
    return T.address_of(buffer[index or (0,) * len(buffer.shape)])


def device(name: str, *args: Expr, source: str, returns: str = "void") -> Expr:
    """A call of the device function ``name``, defined by ``source``; kernels of one module share equal sources."""
    return cuda_func_call(name, *args, source_code=source, return_type=returns)


def run(call: Expr) -> None:
    """Emits a call for what it does."""
    T.evaluate(call)
