"""The chunks of attention_decode.py added up by whichever of a head's blocks is done last.

The arithmetic does not depend on who does it, and is the same as attention_combine.py's: weights relative to the
maximum of all chunks, eight sums of every eighth chunk each, and those eight one after the other.
"""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.attention_output import OutputRow, rate_of, weight_of
from dspark_compiler.schedules.cuda.attention_plan import DecodePlan, decode_plan, partial_sizes
from dspark_compiler.schedules.cuda.attention_rows import Problem, Span, Tensors
from dspark_compiler.schedules.cuda.attention_warp import HIDDEN
from dspark_compiler.schedules.cuda.floats import fused
from dspark_compiler.schedules.cuda.memory import load_float, load_floats, store_float, store_int, store_pair
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, device, registers
from dspark_compiler.schedules.cuda.warps import reduce_float
from dspark_compiler.schedules.tir import Buffer, Expr, when

SUMS = 8  # of every eighth chunk each
_HEAD = 16  # bytes of shared memory in front


@dataclass(frozen=True)
class Chunks:
    """The chunks that any of a block's query rows may see: one at least, so that somebody writes out."""

    first: Expr
    end: Expr


def chunks_of(plan: DecodePlan, span: Span, visible: Expr) -> Chunks:
    """Those with slots from ``visible`` on."""
    cut = plan.chunking(span)
    first = T.Bind(T.min(cut.chunk_of(visible), plan.chunks - 1))
    return Chunks(first, T.Bind(T.max(cut.end(span.end), first + 1)))


def join_bytes(problem: Problem) -> int:
    """Shared memory a block that joins needs."""
    return _HEAD + problem.rows * (8 * _stride(problem) + 4) if decode_plan(problem).joined else 0


def _stride(problem: Problem) -> int:
    """Chunks, up to whole warps."""
    return -(-decode_plan(problem).chunks // WARP) * WARP


def clear_counts(problem: Problem, workspace: Buffer, row: Expr, thread: Expr, threads: int) -> None:
    """Nothing of the call's row ``row`` is done yet; for a kernel before the one that joins, by all of a block."""
    for start in range(0, problem.shape.kv_heads, threads):
        head = start + thread
        with when(head < problem.shape.kv_heads):
            store_int(_count(problem, workspace, row, head), T.int32(0))


def _count(problem: Problem, workspace: Buffer, row: Expr, head: Expr) -> Expr:
    return address(workspace, sum(partial_sizes(problem)) + row * problem.shape.kv_heads + head)


def join_chunks(
    problem: Problem,
    tensors: Tensors,
    workspace: Buffer,
    place: tuple[Expr, Expr],
    chunks: Chunks,
    block: tuple[Buffer, Expr],
) -> None:
    """Writes out[row, :, heads of ``place``] if all other chunks are in the workspace; all threads take part.

    Args:
        problem: the call.
        tensors: its buffers.
        workspace: that of attention_plan.py.
        place: row of the call and key/value head.
        chunks: those that are awaited.
        block: shared memory, uint8, and the thread.
    """
    memory, thread = block
    counter, others = _count(problem, workspace, *place), chunks.end - chunks.first - 1
    last = device("dspark_is_last", counter, others, address(memory), source=_IS_LAST, returns="int32")
    with when(T.Bind(last) != 0):
        join = _Join(problem, tensors, workspace, place, chunks, memory, thread)
        join.weigh()
        barrier()
        join.add()


# What the block's threads have stored becomes visible through the first one (PTX ISA, "Memory consistency model":
# causality order through barriers), and so does what the other blocks' had.
_IS_LAST = """
__device__ __forceinline__ int dspark_is_last(void* counter, int others, void* flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    int before;
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    *(int*)flag = before == others;
  }
  __syncthreads();
  return *(volatile int*)flag;
}
"""


class _Join:
    """Emits the last block's work. Weights and totals [rows, chunks, 2] lie in shared memory, then maxima [rows]."""

    def __init__(
        self,
        problem: Problem,
        tensors: Tensors,
        workspace: Buffer,
        place: tuple[Expr, Expr],
        chunks: Chunks,
        memory: Buffer,
        thread: Expr,
    ) -> None:
        self._problem, self._tensors, self._workspace, self._place = problem, tensors, workspace, place
        self._chunks, self._memory, self._thread = chunks, memory, thread
        self._plan, self._stride = decode_plan(problem), _stride(problem)
        self._rate = T.float32(rate_of(problem))

    def _row(self, m: Expr) -> OutputRow:
        row, head = self._place
        return OutputRow(self._problem, self._tensors, row, head, m)

    def _partial(self, chunk: Expr, m: Expr) -> Expr:
        """Number of a chunk's row in the workspace."""
        row, head = self._place
        return ((row * self._problem.shape.kv_heads + head) * self._plan.chunks + chunk) * self._problem.rows + m

    def _pair(self, m: Expr, chunk: Expr) -> Expr:
        return _HEAD + (m * self._stride + chunk) * 8

    def _maximum(self, m: Expr) -> Expr:
        return address(self._memory, _HEAD + self._problem.rows * self._stride * 8 + m * 4)

    def _real(self, chunk: Expr) -> Expr:
        return T.And(chunk >= self._chunks.first, chunk < self._chunks.end)

    def weigh(self) -> None:
        """A warp a row: what its chunks count."""
        warps, turns = self._plan.threads // WARP, self._stride // WARP
        lane, pairs = self._thread % WARP, partial_sizes(self._problem)[0]
        for start in range(0, self._problem.rows, warps):
            m = T.Bind(start + self._thread // WARP)
            with when(m < self._problem.rows):
                held, peak = registers(turns * 2), registers(1)
                T.buffer_store(peak, T.float32(HIDDEN), [0])
                for turn in range(turns):
                    chunk = turn * WARP + lane
                    T.buffer_store(held, T.float32(HIDDEN), [turn * 2])
                    T.buffer_store(held, T.float32(0.0), [turn * 2 + 1])
                    with when(self._real(chunk)):
                        at = address(self._workspace, pairs + self._partial(chunk, m) * 2)
                        load_floats(held, turn * 2, at, 2)
                for turn in range(turns):
                    T.buffer_store(peak, T.max(peak[0], held[turn * 2]), [0])
                maximum = T.Bind(self._row(m).peak(reduce_float(peak[0], "max")))
                for turn in range(turns):
                    weight = weight_of(held[turn * 2], maximum, self._rate)
                    store_pair(address(self._memory, self._pair(m, turn * WARP + lane)), weight, held[turn * 2 + 1])
                with when(lane == 0):
                    store_float(self._maximum(m), maximum)

    def add(self) -> None:
        """A thread for each four elements."""
        quads, threads = self._problem.shape.value_dim // 4, self._plan.threads
        for start in range(0, self._problem.rows * quads, threads):
            unit = start + self._thread
            m, d = T.Bind(unit // quads), T.Bind(unit % quads * 4)
            with when(unit < self._problem.rows * quads):
                self._add(m, d)

    def _add(self, m: Expr, d: Expr) -> None:
        dim, chunks = self._problem.shape.value_dim, self._chunks
        sums, totals, given = registers(SUMS * 4), registers(SUMS), registers(SUMS * 4)
        for i in range(SUMS * 4):
            T.buffer_store(sums, T.float32(0.0), [i])
        for i in range(SUMS):
            T.buffer_store(totals, T.float32(0.0), [i])
        begin = T.Bind(chunks.first // SUMS)
        with T.serial(0, (chunks.end + (SUMS - 1)) // SUMS - begin) as turn:
            for i in range(SUMS):  # loads are under way together
                chunk = T.Bind((begin + turn) * SUMS + i)
                for j in range(4):
                    T.buffer_store(given, T.float32(0.0), [i * 4 + j])
                with when(self._real(chunk)):
                    load_floats(given, i * 4, address(self._workspace, self._partial(chunk, m) * dim + d), 4)
            for i in range(SUMS):
                at = T.Bind(self._pair(m, (begin + turn) * SUMS + i))
                weight = T.Bind(load_float(address(self._memory, at)))
                total = load_float(address(self._memory, at + 4))
                T.buffer_store(totals, fused(total, weight, totals[i]), [i])
                for j in range(4):
                    T.buffer_store(sums, fused(given[i * 4 + j], weight, sums[i * 4 + j]), [i * 4 + j])
        out = self._row(m)
        peak = T.Bind(load_float(self._maximum(m)))
        inverse = out.inverse(added([totals[i] for i in range(SUMS)]), T.float32(1.0), peak)
        values = [added([sums[i * 4 + j] for i in range(SUMS)]) * inverse for j in range(4)]
        out.store(d, values[0], values[1])
        out.store(d + 2, values[2], values[3])


def added(values: list[Expr]) -> Expr:
    """Their sum, one after the other."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return T.Bind(total)
