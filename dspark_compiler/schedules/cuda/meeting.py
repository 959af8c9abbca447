"""How the warps of a cluster put their parts of a number together, at the price of one trip between blocks.

A warp's part goes to every block by an asynchronous store that also tells the receiver's mbarrier of its bytes; each
block waits until it has all of them (PTX ISA, "st.async" and "mbarrier"). Parts lie in two places by turns, with an
mbarrier each: a slow warp may still read one while a fast one's next part arrives in the other. A part for a place
comes only after its sender has all parts of the other, and so after all warps are done with what was there before.
"""

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.clusters import cluster_barrier
from dspark_compiler.schedules.cuda.row_cluster import RowCluster
from dspark_compiler.schedules.cuda.threads import WARP, address, device, registers, run, shared
from dspark_compiler.schedules.tir import Expr, when

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
    """Emits what the kinds of parts have in common: the mbarriers, and which turn it is."""

    def __init__(self, cluster: RowCluster, block: Expr, thread: Expr) -> None:
        self.cluster, self.thread = cluster, thread
        self.warp = T.Bind(block * (cluster.threads // WARP) + thread // WARP)
        self.doors, self.turn = shared(2, "int64"), registers(1, "int32")
        self._sent = 0  # bytes a warp sends to each block this turn
        T.buffer_store(self.turn, T.int32(0), [0])
        with when(thread == 0):
            for door in range(2):
                run(device("dspark_meeting_open", address(self.doors, door), source=_OPEN))
        cluster_barrier()  # no block may be sent to before it has opened

    def send(self, value: Expr, place: Expr, dtype: str) -> None:
        """Sends a warp's ``value``, the same in all lanes, to ``place`` of each block's shared memory."""
        kind, bits, letter = {"int32": ("int", 32, "r"), "int64": ("int64_t", 64, "l")}[dtype]
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
        self._sent += bits // 8
        run(device(name, value, place, address(self.doors), self.turn[0], self.cluster.blocks, source=source))

    def wait(self) -> None:
        """Waits for the parts of all warps; what they sent is theirs until the next call but one."""
        size = self._sent * self.cluster.warps
        run(device("dspark_meeting_wait", address(self.doors), self.turn[0], size, self.thread == 0, source=_WAIT))
        T.buffer_store(self.turn, self.turn[0] + 1, [0])
        self._sent = 0


class Parts:
    """Parts of one type, int32 or int64."""

    def __init__(self, meeting: Meeting, dtype: str) -> None:
        self._meeting, self._dtype = meeting, dtype
        self._parts = shared((2, meeting.cluster.warps), dtype)

    def send(self, value: Expr) -> None:
        """Sends a warp's part, the same in all lanes, to all; before ``Meeting.wait``."""
        place = address(self._parts, self._place(T.bitwise_and(self._meeting.turn[0], 1)), self._meeting.warp)
        self._meeting.send(value, place, self._dtype)

    def gather(self, take: Callable[[Expr], None]) -> None:
        """Calls take with a lane's share of the parts; after ``Meeting.wait``."""
        warps = self._meeting.cluster.warps
        for first in range(0, warps, WARP):
            warp = first + self._meeting.thread % WARP
            with when(warp < warps):
                take(self._parts[self._place(T.bitwise_and(self._meeting.turn[0] + 1, 1)), warp])

    def _place(self, odd: Expr) -> Expr:
        # TVM takes an unknown index for a constant one, and would cut the buffer down to that.
        return T.Select(odd == 0, T.int32(0), T.int32(1))
