"""How the warps of a cluster put their parts of a number together, at the price of one trip between blocks.

A block's warps meet in its shared memory. Its first warp sends what they have to every block by an asynchronous store
that also tells the receiver's mbarrier of its bytes; each block waits until it has all (PTX ISA, "st.async" and
"mbarrier"). Everything has two places, taken by turns: a slow warp may still read one while the next numbers arrive in
the other, and they come to this one again only after all warps had the other's, so are done here.
"""

from typing import Literal

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.clusters import cluster_barrier
from dspark_compiler.schedules.cuda.row_cluster import RowCluster
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, device, registers, run, shared
from dspark_compiler.schedules.cuda.warps import add_int64, reduce_int32
from dspark_compiler.schedules.tir import Buffer, Expr, when

Agreement = Literal["add", "max", "min", "add_int64"]

_NEUTRAL = {"add": 0, "max": -(2**31), "min": 2**31 - 1, "add_int64": 0}
_SIZE = {"int32": 4, "int64": 8}
_C_TYPE = {"int32": "int", "int64": "int64_t"}

_OPEN = """
__device__ __forceinline__ void dspark_meeting_open(int64_t* door) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"((unsigned)__cvta_generic_to_shared(door)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
"""
_WAIT = """
__device__ __forceinline__ void dspark_meeting_wait(int64_t* doors, int turn, int bytes, bool first) {
  unsigned at = (unsigned)__cvta_generic_to_shared(doors) + 8 * (turn & 1), done;
  if (first) asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :: "r"(at), "r"(bytes) : "memory");
  do {
    asm volatile("{.reg .pred p;\\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\\n"
      "selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(at), "r"(turn >> 1 & 1) : "memory");
  } while (!done);
}
"""


class Meeting:
    """Emits agreements on numbers. All threads of the cluster take part in each."""

    def __init__(self, cluster: RowCluster, block: Expr, thread: Expr) -> None:
        self._blocks, self._block, self._thread = cluster.blocks, block, thread
        self._warps = cluster.threads // WARP
        self._warp, self._lane = T.Bind(thread // WARP), T.Bind(thread % WARP)
        self._inside = {dtype: shared((2, self._warps), dtype) for dtype in _SIZE}
        self._between = {dtype: shared((2, self._blocks), dtype) for dtype in _SIZE}
        self._turn = registers(1, "int32")
        T.buffer_store(self._turn, T.int32(0), [0])
        self._doors = shared(2, "int64")
        with when(thread == 0):
            for door in range(2):
                run(device("dspark_meeting_open", address(self._doors, door), source=_OPEN))
        cluster_barrier()  # no block may be sent to before it has opened

    def agree(self, *parts: tuple[Agreement, Expr]) -> list[Expr]:
        """Sums (of int64 below 2^58, not negative, or of int32), maxima, minima of the warps' parts, one of each type.

        A part is the same in all lanes of a warp.
        """
        for how, value in parts:
            _put(value, self._inside[_dtype(how)], self._place(), self._warp)
        barrier()
        with when(self._warp == 0):
            for how, _ in parts:
                self._send(self._gather(how, self._inside, self._warps), self._between[_dtype(how)])
        size = self._blocks * sum(_SIZE[_dtype(how)] for how, _ in parts)
        doors, first = address(self._doors), self._thread == 0
        run(device("dspark_meeting_wait", doors, self._turn[0], size, first, source=_WAIT))
        results = [self._gather(how, self._between, self._blocks) for how, _ in parts]
        T.buffer_store(self._turn, self._turn[0] + 1, [0])
        # TVM takes equal calls for equal numbers, whatever came between; what is stored it lets be.
        kept = [registers(1, _dtype(how)) for how, _ in parts]
        for place, result in zip(kept, results, strict=True):
            T.buffer_store(place, result, [0])
        return [place[0] for place in kept]

    def _gather(self, how: Agreement, places: dict[str, Buffer], count: int) -> Expr:
        """The numbers of all places of this turn as one, by each warp for itself."""
        neutral = getattr(T, _dtype(how))(_NEUTRAL[how])
        number = _get(places[_dtype(how)], self._place(), T.min(self._lane, count - 1))
        value = T.Bind(T.Select(self._lane < count, number, neutral))
        return add_int64(value) if how == "add_int64" else reduce_int32(value, how)

    def _send(self, value: Expr, places: Buffer) -> None:
        dtype = str(places.dtype)
        kind, bits, letter = _C_TYPE[dtype], 8 * _SIZE[dtype], {"int32": "r", "int64": "l"}[dtype]
        name = f"dspark_meeting_send_{dtype}"
        source = f"""
__device__ __forceinline__ void {name}({kind} value, {kind}* place, int64_t* doors, int turn, int blocks) {{
  int block = threadIdx.x % 32;
  if (block < blocks) {{
    unsigned at = __cvta_generic_to_shared(place), door = (unsigned)__cvta_generic_to_shared(doors) + 8 * (turn & 1);
    asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(block));
    asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(door) : "r"(block));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b{bits} [%0], %1, [%2];"
      :: "r"(at), "{letter}"(value), "r"(door) : "memory");
  }}
}}
"""
        place = address(places, self._place(), self._block)
        run(device(name, value, place, address(self._doors), self._turn[0], self._blocks, source=source))

    def _place(self) -> Expr:
        # TVM takes an unknown index for a constant one, and would cut the buffer down to that.
        return T.Select(T.bitwise_and(self._turn[0], 1) == 0, T.int32(0), T.int32(1))


def _put(value: Expr, buffer: Buffer, *place: Expr) -> None:
    """Stores a warp's value in shared memory; TVM would see a race in places taken by turns, and want barriers."""
    kind = _C_TYPE[str(buffer.dtype)]
    name = f"dspark_meeting_put_{buffer.dtype}"
    source = f"""
__device__ __forceinline__ void {name}({kind} value, {kind}* place) {{ if (threadIdx.x % 32 == 0) *place = value; }}
"""
    run(device(name, value, address(buffer, *place), source=source))


def _get(buffer: Buffer, *place: Expr) -> Expr:
    """Loads what ``_put`` or another block has stored."""
    kind = _C_TYPE[str(buffer.dtype)]
    name = f"dspark_meeting_get_{buffer.dtype}"
    source = f"""
__device__ __forceinline__ {kind} {name}(const {kind}* place) {{ return *place; }}
"""
    return T.Bind(device(name, address(buffer, *place), source=source, returns=str(buffer.dtype)))


def _dtype(how: Agreement) -> str:
    return "int64" if how == "add_int64" else "int32"
