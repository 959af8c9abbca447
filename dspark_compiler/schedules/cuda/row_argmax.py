"""The greedy choice: the place of a row's largest logit, found by a cluster of blocks a row.

A logit and its place make one 64-bit key whose order is the logit's, and for equal logits the reverse of the place's:
the largest key names the first of the largest logits.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.clusters import cluster_barrier
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.memory_reads import written_float
from dspark_compiler.schedules.cuda.row_cluster import RowCluster
from dspark_compiler.schedules.cuda.threads import WARP, address, device, registers, run, shared
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_BATCH = 10  # logits under way to a thread
_KEY = "int64"


def row_argmax(name: str, rows: int, vocab: int, *, out_dtype: str = "int32") -> tvm.tirx.PrimFunc:
    """Kernel for y[M] = argmax of logits [M, V] along V, the lowest of equals; arguments logits, y.

    Args:
        name: name of the function.
        rows: M.
        vocab: V.
        out_dtype: of y, "int32" or "int64".
    """
    cluster = RowCluster(vocab)

    def body(logits: Buffer, y: Buffer) -> None:
        with cluster.launch(rows) as (row, block, thread):
            best, seen = registers(1, _KEY), registers(_BATCH)
            keys = shared(cluster.threads // WARP, _KEY)
            T.buffer_store(best, T.int64(-(2**63)), [0])  # below every logit's key
            release_next()
            await_previous()
            for start in range(0, cluster.each, _BATCH):
                batch = range(start, min(start + _BATCH, cluster.each))
                # Behind the end is the last logit again.
                places = [T.min((i * cluster.blocks + block) * cluster.threads + thread, vocab - 1) for i in batch]
                for i, place in enumerate(places):
                    T.buffer_store(seen, written_float(address(logits, row, place)), [i])
                for i, place in enumerate(places):
                    _keep(best, _key(seen[i], place))
            _keep(best, _warp_max(best[0]))
            with when(thread % WARP == 0):
                T.buffer_store(keys, best[0], [thread // WARP])
            cluster_barrier()
            with when(tvm.tirx.all(block == 0, thread < WARP)):
                warp = T.min(thread, cluster.threads // WARP - 1)
                for other in range(cluster.blocks):
                    _keep(best, _of_block(other, address(keys, warp)))
                _keep(best, _warp_max(best[0]))
                with when(thread == 0):
                    T.buffer_store(y, T.cast(_place(best[0]), out_dtype), [row])
            cluster_barrier()  # no block may go while its keys are read

    return kernel(name, [Arg("logits", (rows, vocab)), Arg("y", (rows,), out_dtype)], body)


def _keep(best: Buffer, key: Expr) -> None:
    source = """
__device__ __forceinline__ void dspark_keep(int64_t* best, int64_t key) { if (key > *best) *best = key; }
"""
    run(device("dspark_keep", address(best), key, source=source))


def _key(value: Expr, place: Expr) -> Expr:
    """The key of a logit: floats' bits order as integers do once the rest of negative ones is turned over."""
    source = """
__device__ __forceinline__ int64_t dspark_key(float v, int place) {
  int b = __float_as_int(v);
  b = b < 0 ? b ^ 0x7fffffff : b;
  return (int64_t)b << 32 | (unsigned)~place;
}
"""
    return device("dspark_key", value, place, source=source, returns=_KEY)


def _place(key: Expr) -> Expr:
    source = """
__device__ __forceinline__ int dspark_place(int64_t key) { return ~(int)key; }
"""
    return device("dspark_place", key, source=source, returns="int32")


def _warp_max(key: Expr) -> Expr:
    """The largest key of the warp, in every lane."""
    source = """
__device__ __forceinline__ int64_t dspark_warp_max_key(int64_t key) {
  for (int step = 16; step; step >>= 1) {
    int64_t other = __shfl_xor_sync(0xffffffffu, key, step);
    if (other > key) key = other;
  }
  return key;
}
"""
    return device("dspark_warp_max_key", key, source=source, returns=_KEY)


def _of_block(block: int, pointer: Expr) -> Expr:
    """The key that the cluster's block has where ``pointer`` lies in this block's shared memory."""
    source = """
__device__ __forceinline__ int64_t dspark_key_of_block(int block, const void* p) {
  unsigned at = __cvta_generic_to_shared(p);
  int64_t key;
  asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(block));
  asm volatile("ld.shared::cluster.s64 %0, [%1];" : "=l"(key) : "r"(at) : "memory");
  return key;
}
"""
    return device("dspark_key_of_block", block, pointer, source=source, returns=_KEY)
