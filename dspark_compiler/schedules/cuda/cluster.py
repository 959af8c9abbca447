"""Blocks of one cluster: launched together on neighbouring multiprocessors, they read each other's shared memory.

PTX ISA, "barrier.cluster", "mapa", "ld.shared::cluster"; compute capability 9.0 and up.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import device, run
from dspark_compiler.schedules.tir import Expr

MAX_BLOCKS = 8  # of a cluster, on every chip that has them


@contextmanager
def clustered(blocks: int) -> Iterator[None]:
    """Inside ``launch``: that many consecutive blocks of the grid's x axis are a cluster."""
    if blocks == 1:
        yield
        return
    with T.launch_thread("clusterCtaIdx.x", blocks):
        yield


def cluster_barrier() -> None:
    """All threads of the cluster get here before one goes on; their writes to shared memory are seen."""
    source = """
__device__ __forceinline__ void dspark_cluster_barrier() {
  asm volatile("barrier.cluster.arrive.aligned;\\nbarrier.cluster.wait.aligned;" ::: "memory");
}
"""
    run(device("dspark_cluster_barrier", source=source))


def peer_float(pointer: Expr, rank: Expr) -> Expr:
    """The float32 that the cluster's block ``rank`` has where ``pointer`` lies in this block's shared memory."""
    source = """
__device__ __forceinline__ float dspark_peer_float(const void* p, int rank) {
  unsigned a = (unsigned)__cvta_generic_to_shared(p), b; float v;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(b) : "r"(a), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(b) : "memory");
  return v;
}
"""
    return device("dspark_peer_float", pointer, rank, source=source, returns="float32")


def peer_word(pointer: Expr, rank: Expr) -> Expr:
    """As ``peer_float``, a uint64."""
    source = """
__device__ __forceinline__ unsigned long long dspark_peer_word(const void* p, int rank) {
  unsigned a = (unsigned)__cvta_generic_to_shared(p), b; unsigned long long v;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(b) : "r"(a), "r"(rank));
  asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(v) : "r"(b) : "memory");
  return v;
}
"""
    return device("dspark_peer_word", pointer, rank, source=source, returns="uint64")
