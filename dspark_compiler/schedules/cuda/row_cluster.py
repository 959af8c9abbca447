"""A long row spread over a cluster of blocks, whose warps send each other numbers through distributed shared memory.

See "Thread block clusters" in the CUDA programming guide, and "mapa" and "barrier.cluster" in the PTX ISA.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import WARP, address, device, launch, run
from dspark_compiler.schedules.tir import Buffer, Expr

_THREADS, _MOST_BLOCKS = 512, 8  # larger clusters do not run everywhere
_FEW = 8  # elements a thread has at least before a row gets more blocks

_BARRIER = """
__device__ __forceinline__ void dspark_cluster_barrier() {
  asm volatile("barrier.cluster.arrive.aligned;\\nbarrier.cluster.wait.aligned;" ::: "memory");
}
"""


@dataclass(frozen=True)
class RowCluster:
    """How a row of ``extent`` elements is spread."""

    extent: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return min(_THREADS, -(-self.extent // WARP) * WARP)

    @property
    def blocks(self) -> int:
        """Blocks of a cluster."""
        return next(n for n in (1, 2, 4, _MOST_BLOCKS) if n == _MOST_BLOCKS or self.extent <= n * _FEW * self.threads)

    @property
    def each(self) -> int:
        """Elements of a thread."""
        return -(-self.extent // (self.threads * self.blocks))

    @property
    def warps(self) -> int:
        """Warps of a cluster."""
        return self.blocks * self.threads // WARP

    @contextmanager
    def launch(self, rows: int) -> Iterator[tuple[Expr, Expr, Expr]]:
        """One cluster a row; yields the row, the block's place in its cluster, and the thread's in its block."""
        with ExitStack() as stack:
            if self.blocks > 1:
                stack.enter_context(T.launch_thread("clusterCtaIdx.x", self.blocks))
            block, row, thread = stack.enter_context(launch((self.blocks, rows), self.threads))
            self.barrier()  # no block may be written to before it has begun
            yield row, block, thread

    def barrier(self) -> None:
        """All threads of the cluster get here, and see what the others wrote before, before one goes on."""
        run(device("dspark_cluster_barrier", source=_BARRIER))

    def send(self, value: Expr, parts: Buffer, place: Expr) -> None:
        """Puts ``value``, the same in a warp's lanes, at ``place`` of every block's ``parts``."""
        kind, bits, letter = {
            "int32": ("int", 32, "r"),
            "int64": ("int64_t", 64, "l"),
            "float64": ("double", 64, "d"),
        }[str(parts.dtype)]
        name = f"dspark_send_{parts.dtype}"
        source = f"""
__device__ __forceinline__ void {name}({kind} value, {kind}* place, int blocks) {{
  int block = threadIdx.x % 32;
  if (block < blocks) {{
    unsigned here = __cvta_generic_to_shared(place), there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(block));
    asm volatile("st.shared::cluster.{"f" if letter == "d" else "u"}{bits} [%0], %1;"
      :: "r"(there), "{letter}"(value) : "memory");
  }}
}}
"""
        run(device(name, value, address(parts, place), self.blocks, source=source))
