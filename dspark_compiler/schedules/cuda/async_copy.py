"""Copies into shared memory that run beside the threads, and the barriers that tell when they are done.

cp.async (sm_80, PTX ISA "cp.async") moves 16 bytes a thread and is waited for by its thread; the copy engine
(tensor_maps.py) counts bytes on an mbarrier (PTX ISA "mbarrier"), eight bytes of shared memory.
"""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.threads import device, run
from dspark_compiler.schedules.tir import Expr

_SHARED = "(unsigned)__cvta_generic_to_shared"


def copy16(target: Expr, source: Expr, valid: Expr) -> None:
    """Starts copying 16 bytes from global to shared memory; zeros where not ``valid``, and nothing is read."""
    source_code = f"""
__device__ __forceinline__ void dspark_copy16(void* to, const void* from, bool valid) {{
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
    :: "r"({_SHARED}(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}}
"""
    run(device("dspark_copy16", target, source, valid, source=source_code))


def commit_copies() -> None:
    """Makes the thread's copies since the last commit a group."""
    source = """
__device__ __forceinline__ void dspark_commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
"""
    run(device("dspark_commit_copies", source=source))


def wait_copies(pending: int) -> None:
    """Waits until at most ``pending`` of the thread's groups are under way."""
    source = f"""
__device__ __forceinline__ void dspark_wait_copies_{pending}() {{
  asm volatile("cp.async.wait_group {pending};" ::: "memory");
}}
"""
    run(device(f"dspark_wait_copies_{pending}", source=source))


def publish_writes() -> None:
    """Lets the tensor cores' own loads see what this thread wrote to shared memory (PTX ISA, "Async proxy")."""
    source = """
__device__ __forceinline__ void dspark_publish_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
"""
    run(device("dspark_publish_writes", source=source))


def init_barrier(barrier: Expr, arrivals: int) -> None:
    """Sets up a barrier whose phases complete after ``arrivals`` arrivals and all bytes expected."""
    source = f"""
__device__ __forceinline__ void dspark_init_barrier(void* bar, int arrivals) {{
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"({_SHARED}(bar)), "r"(arrivals) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}}
"""
    run(device("dspark_init_barrier", barrier, arrivals, source=source))


def arrive(barrier: Expr) -> None:
    """One arrival."""
    source = f"""
__device__ __forceinline__ void dspark_arrive(void* bar) {{
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"({_SHARED}(bar)) : "memory");
}}
"""
    run(device("dspark_arrive", barrier, source=source))


def arrive_expecting(barrier: Expr, count: int) -> None:
    """One arrival, and ``count`` more bytes of copies that the barrier's phase waits for."""
    source = f"""
__device__ __forceinline__ void dspark_arrive_expecting(void* bar, int count) {{
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
    :: "r"({_SHARED}(bar)), "r"(count) : "memory");
}}
"""
    run(device("dspark_arrive_expecting", barrier, T.int32(count), source=source))


def wait_phase(barrier: Expr, parity: Expr) -> None:
    """Waits for the end of the barrier's phase of this parity; that before the first counts as 1."""
    source = f"""
__device__ __forceinline__ void dspark_wait_phase(void* bar, int parity) {{
  unsigned done = 0, at = {_SHARED}(bar);
  while (!done)
    asm volatile("{{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }}"
      : "=r"(done) : "r"(at), "r"(parity) : "memory");
}}
"""
    run(device("dspark_wait_phase", barrier, parity, source=source))
