"""Copies of boxes of a tensor into shared memory, one instruction each (PTX ISA, "Tensor copy", sm_90).

What a box has beyond the tensor's extents is zeros; it counts on its barrier as whole, all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import DataType
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import device, run
from dspark_compiler.schedules.tir import Buffer, Expr

SWIZZLE_NONE, SWIZZLE_128 = 0, 3  # as the driver numbers them
_PROMOTE_256 = 3  # bytes the L2 fetches at once
_SHARED = "(unsigned)__cvta_generic_to_shared"


@dataclass(frozen=True)
class TensorMap:
    """A tensor as the copy engine knows it; made on the host, a parameter of the kernels launched behind it."""

    handle: Any
    rank: int

    def copy(self, target: Expr, at: Sequence[Expr], barrier: Expr) -> None:
        """Starts copying the box that begins at coordinates ``at``, innermost first; its bytes count on ``barrier``."""
        coordinates = ", ".join(f"%{3 + i}" for i in range(self.rank))
        operands = ", ".join(f'"r"(c{i})' for i in range(self.rank))
        name = f"dspark_copy_box_{self.rank}"
        parameters = ", ".join(f"int c{i}" for i in range(self.rank))
        source = f"""
__device__ __forceinline__ void {name}(void* to, unsigned long long map, void* bar, {parameters}) {{
  asm volatile("cp.async.bulk.tensor.{self.rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
    "[%0], [%1, {{{coordinates}}}], [%2];"
    :: "r"({_SHARED}(to)), "l"(map), "r"({_SHARED}(bar)), {operands} : "memory");
}}
"""
        run(device(name, target, T.address_of(self.handle), barrier, *at, source=source))

    def store(self, source: Expr, at: Sequence[Expr]) -> None:
        """Starts copying a box from shared memory to coordinates ``at``; nothing is written beyond the tensor."""
        coordinates = ", ".join(f"%{2 + i}" for i in range(self.rank))
        operands = ", ".join(f'"r"(c{i})' for i in range(self.rank))
        parameters = ", ".join(f"int c{i}" for i in range(self.rank))
        name = f"dspark_store_box_{self.rank}"
        source_code = f"""
__device__ __forceinline__ void {name}(const void* from, unsigned long long map, {parameters}) {{
  asm volatile("cp.async.bulk.tensor.{self.rank}d.global.shared::cta.tile.bulk_group [%1, {{{coordinates}}}], [%0];"
    :: "r"({_SHARED}(from)), "l"(map), {operands} : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}}
"""
        run(device(name, source, T.address_of(self.handle), *at, source=source_code))


def wait_stores(pending: int, *, read: bool = False) -> None:
    """Waits until at most ``pending`` of the thread's stores are under way, or (``read``) still read shared memory."""
    name = f"dspark_wait_stores_{pending}" + ("_read" if read else "")
    source = f"""
__device__ __forceinline__ void {name}() {{
  asm volatile("cp.async.bulk.wait_group{".read" if read else ""} {pending};" ::: "memory");
}}
"""
    run(device(name, source=source))


def tensor_map(
    name: str,
    buffer: Buffer,
    extents: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    *,
    swizzle: int = SWIZZLE_NONE,
) -> TensorMap:
    """Describes a view of ``buffer``'s memory; emitted before a launch.

    Args:
        name: of the kernel's parameter, its own in the function.
        buffer: at a multiple of 16 bytes.
        extents: in elements, innermost first, at most five.
        strides: elements from one to the next along every axis but the innermost, multiples of 16 bytes.
        box: what a copy takes, at most 256 along an axis.
        swizzle: how rows of the box lie in shared memory.
    """
    handle = T.Var(name, ty=T.handle("tensormap").ty)
    T.Bind(T.tvm_stack_alloca("tensormap", 1), var=handle)
    rank, ones, size = len(extents), [1] * len(extents), DataType(buffer.dtype).bits // 8
    T.evaluate(
        T.tensormap_encode_tiled(
            handle,
            buffer.data,
            *extents,
            *(size * stride for stride in strides),
            *box,
            *ones,
            descriptor_dtype=str(buffer.dtype),
            rank=rank,
            swizzle=swizzle,
            l2_promotion=_PROMOTE_256,
        )
    )
    return TensorMap(handle, rank)
