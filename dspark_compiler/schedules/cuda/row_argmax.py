"""The greedy choice: the place of a row's largest logit, found by a cluster of blocks a row.

A logit and its place make one 64-bit key whose order is the logit's, and for equal logits the reverse of the place's, so
that the largest key names the first of the largest logits.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.cluster import MAX_BLOCKS, cluster_barrier, clustered, peer_word
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.stream_inputs import written_float
from dspark_compiler.schedules.cuda.threads import WARP, address, device, launch, registers, run, shared
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_THREADS = 1024
_WARPS = _THREADS // WARP
_BATCH = 10  # logits under way to a thread
_KEY = "uint64"


def row_argmax(name: str, rows: int, vocab: int, *, out_dtype: str = "int32") -> tvm.tirx.PrimFunc:
    """Kernel for y[M] = argmax of logits [M, V] along V, the lowest of equals; arguments logits, y.

    Args:
        name: name of the function.
        rows: M.
        vocab: V.
        out_dtype: of y, "int32" or "int64".
    """
    share = -(-vocab // (MAX_BLOCKS * _THREADS))  # logits a thread looks at

    def body(logits: Buffer, y: Buffer) -> None:
        with launch((rows * MAX_BLOCKS,), _THREADS) as (block, thread), clustered(MAX_BLOCKS):
            row, rank = block // MAX_BLOCKS, block % MAX_BLOCKS
            best = registers(1, _KEY)
            seen = registers(_BATCH)
            keys = shared(_WARPS, _KEY)
            T.buffer_store(best, T.uint64(0), [0])  # below every logit's key
            release_next()
            await_previous()
            for start in range(0, share, _BATCH):
                batch = range(start, min(start + _BATCH, share))
                # Behind the end is the last logit again.
                places = [T.min((i * MAX_BLOCKS + rank) * _THREADS + thread, vocab - 1) for i in batch]
                for i, place in enumerate(places):
                    T.buffer_store(seen, written_float(address(logits, row, place)), [i])
                for i, place in enumerate(places):
                    _keep(best, _key(seen[i], place))
            _keep(best, _warp_max(best[0]))
            with when(thread % WARP == 0):
                T.buffer_store(keys, best[0], [thread // WARP])
            cluster_barrier()
            with when(tvm.tirx.all(rank == 0, thread < WARP)):
                for peer in range(MAX_BLOCKS):
                    _keep(best, peer_word(address(keys, thread), peer))
                _keep(best, _warp_max(best[0]))
                with when(thread == 0):
                    T.buffer_store(y, T.cast(_place(best[0]), out_dtype), [row])
            cluster_barrier()  # no block may go while its shared memory is read

    return kernel(name, [Arg("logits", (rows, vocab)), Arg("y", (rows,), out_dtype)], body)


def _keep(best: Buffer, key: Expr) -> None:
    source = """
__device__ __forceinline__ void dspark_keep(uint64_t* best, uint64_t key) {
  if (key > *best) *best = key;
}
"""
    run(device("dspark_keep", address(best), key, source=source))


def _key(value: Expr, place: Expr) -> Expr:
    """The key of a logit: floats' bits order as integers do once negative ones are turned over."""
    source = """
__device__ __forceinline__ uint64_t dspark_key(float v, int place) {
  unsigned b = __float_as_uint(v);
  b = b & 0x80000000u ? ~b : b | 0x80000000u;
  return (uint64_t)b << 32 | ~(unsigned)place;
}
"""
    return device("dspark_key", value, place, source=source, returns=_KEY)


def _place(key: Expr) -> Expr:
    source = """
__device__ __forceinline__ int dspark_place(uint64_t key) { return (int)~(unsigned)key; }
"""
    return device("dspark_place", key, source=source, returns="int32")


def _warp_max(key: Expr) -> Expr:
    """The largest key of the warp, in every lane."""
    source = """
__device__ __forceinline__ uint64_t dspark_warp_max(uint64_t key) {
  for (int step = 16; step; step >>= 1) {
    uint64_t other = __shfl_xor_sync(0xffffffffu, key, step);
    if (other > key) key = other;
  }
  return key;
}
"""
    return device("dspark_warp_max", key, source=source, returns=_KEY)
