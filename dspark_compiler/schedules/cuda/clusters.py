"""Clusters of blocks, which see each other's shared memory (CUDA programming guide, "Thread block clusters")."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import address, device, launch, run
from dspark_compiler.schedules.tir import Buffer, Expr

MOST_BLOCKS = 8  # larger clusters do not run everywhere


@contextmanager
def launch_clusters(blocks: int, rest: Sequence[int], threads: int) -> Iterator[tuple[Any, ...]]:
    """Emits a launch of prod(rest) clusters of two blocks or more.

    Yields the block's place in its cluster, the cluster's index in ``rest``, and the thread's number in its block.
    """
    with T.launch_thread("clusterCtaIdx.x", blocks), launch((blocks, *rest), threads) as axes:
        yield axes


def cluster_barrier() -> None:
    """All threads of the cluster get here, and see what the others wrote before, before one goes on."""
    source = """
__device__ __forceinline__ void dspark_cluster_barrier() {
  asm volatile("barrier.cluster.arrive;\\nbarrier.cluster.wait;" ::: "memory");
}
"""
    run(device("dspark_cluster_barrier", source=source))


def send(value: Expr, buffer: Buffer, place: Expr, blocks: int) -> None:
    """Puts float64 ``value``, the same in a warp's lanes, at ``place`` of the buffer in each of ``blocks`` blocks."""
    source = """
__device__ __forceinline__ void dspark_send(double value, double* place, int blocks) {
  int block = threadIdx.x % 32;
  if (block < blocks) {
    unsigned at = __cvta_generic_to_shared(place);
    asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(block));
    asm volatile("st.shared::cluster.f64 [%0], %1;" :: "r"(at), "d"(value) : "memory");
  }
}
"""
    run(device("dspark_send", value, address(buffer, place), blocks, source=source))


def from_block(block: Expr, buffer: Buffer, *index: Expr) -> Expr:
    """An element, float32, of the buffer in another block."""
    source = """
__device__ __forceinline__ float dspark_from_block(int block, const float* place) {
  unsigned at = __cvta_generic_to_shared(place);
  float value;
  asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(block));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(at) : "memory");
  return value;
}
"""
    return T.Bind(device("dspark_from_block", block, address(buffer, *index), source=source, returns="float32"))
