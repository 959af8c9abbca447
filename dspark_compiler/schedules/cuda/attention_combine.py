"""Adds up the chunks of attention_decode.py: a block for every query row, its warps take every eighth chunk each."""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.attention_output import OutputRow, rate_of, weight_of
from dspark_compiler.schedules.cuda.attention_plan import decode_plan, partial_sizes
from dspark_compiler.schedules.cuda.attention_rows import Problem, span_of
from dspark_compiler.schedules.cuda.attention_warp import HIDDEN
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.floats import fused
from dspark_compiler.schedules.cuda.memory import load_floats
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, launch, registers, shared
from dspark_compiler.schedules.cuda.warps import from_lane, reduce_float
from dspark_compiler.schedules.gpu.attention_call import Tensors
from dspark_compiler.schedules.tir import Buffer, Expr, when

_SUMS = 8  # of every eighth chunk each
_TOGETHER = WARP // _SUMS  # chunks of a warp among those whose maxima its lanes hold


def combine_chunks(problem: Problem, tensors: Tensors, workspace: Buffer) -> None:
    """Launches the second kernel: out[row, token, head] from the workspace; 0 where a row sees no slot."""
    shape = problem.shape
    with launch((problem.rows, shape.kv_heads, shape.rows), _SUMS * WARP) as (m, head, row, thread):
        _Row(problem, tensors, workspace, (row, head, m), thread).emit()


class _Row:
    """Emits a block's work on a query row; a lane of each warp has four of every 128 elements."""

    def __init__(
        self, problem: Problem, tensors: Tensors, workspace: Buffer, place: tuple[Expr, Expr, Expr], thread: Expr
    ) -> None:
        self._problem, self._tensors, self._workspace, self._place = problem, tensors, workspace, place
        self._plan, self._dim, self._thread = decode_plan(problem), problem.shape.value_dim, thread
        self._warp, self._lane = T.Bind(thread // WARP), T.Bind(thread % WARP)
        self._quads, self._turns = -(-self._dim // (4 * WARP)), -(-self._plan.chunks // WARP)
        self._ratios = registers(self._turns * 2)  # (maximum, total) of every 32nd chunk
        self._given, self._sums = registers(_TOGETHER * self._quads * 4), registers(self._quads * 4)
        self._total = registers(1)

    def emit(self) -> None:
        problem, (row, head, m), dim = self._problem, self._place, self._dim
        all_sums, all_totals = shared((_SUMS, dim)), shared(_SUMS)
        release_next()
        await_previous()
        span, token = span_of(problem, self._tensors, row), T.Bind(m // problem.shape.group)
        cut = self._plan.chunking(span)
        self._first = cut.chunk_of(span.first_visible(problem, token))
        self._end = cut.end(T.min(span.end, span.used + token + 1))
        out = OutputRow(problem, self._tensors, row, head, m)
        maximum = T.Bind(out.peak(self._peak()))
        self._add(maximum)
        for i in range(self._quads * 4):
            d = (i // 4 * WARP + self._lane) * 4 + i % 4
            with when(d < dim):
                T.buffer_store(all_sums, self._sums[i], [self._warp, d])
        with when(self._lane == 0):
            T.buffer_store(all_totals, self._total[0], [self._warp])
        barrier()
        with when(self._thread * 2 < dim):
            inverse = out.inverse(_added([all_totals[w] for w in range(_SUMS)]), T.float32(1.0), maximum)
            low, high = (_added([all_sums[w, self._thread * 2 + i] for w in range(_SUMS)]) for i in range(2))
            out.store(self._thread * 2, low * inverse, high * inverse)

    def _partial(self, chunk: Expr) -> Expr:
        """Number of a chunk's row in the workspace."""
        row, head, m = self._place
        return ((row * self._problem.shape.kv_heads + head) * self._plan.chunks + chunk) * self._problem.rows + m

    def _real(self, chunk: Expr) -> Expr:
        return T.And(chunk >= self._first, chunk < self._end)

    def _peak(self) -> Expr:
        """The maximum of all chunks."""
        peak, pairs = registers(1), partial_sizes(self._problem)[0]
        for turn in range(self._turns):
            chunk = turn * WARP + self._lane
            T.buffer_store(self._ratios, T.float32(HIDDEN), [turn * 2])
            T.buffer_store(self._ratios, T.float32(0.0), [turn * 2 + 1])
            with when(self._real(chunk)):
                load_floats(self._ratios, turn * 2, address(self._workspace, pairs + self._partial(chunk) * 2), 2)
        T.buffer_store(peak, T.float32(HIDDEN), [0])
        for turn in range(self._turns):
            T.buffer_store(peak, T.max(peak[0], self._ratios[turn * 2]), [0])
        return reduce_float(peak[0], "max")

    def _add(self, maximum: Expr) -> None:
        """The warp's sums and total."""
        for i in range(self._quads * 4):
            T.buffer_store(self._sums, T.float32(0.0), [i])
        T.buffer_store(self._total, T.float32(0.0), [0])
        for turn in range(self._turns):
            weight = weight_of(self._ratios[turn * 2], maximum, T.float32(rate_of(self._problem)))
            with when(T.And(turn * WARP < self._end, (turn + 1) * WARP > self._first)):
                for n in range(_TOGETHER):  # loads are under way together
                    self._load(turn * WARP + n * _SUMS + self._warp, n * self._quads)
                for n in range(_TOGETHER):
                    mine, lane = n * self._quads * 4, n * _SUMS + self._warp
                    own = from_lane(weight, lane, "float32")
                    total = from_lane(self._ratios[turn * 2 + 1], lane, "float32")
                    T.buffer_store(self._total, fused(total, own, self._total[0]), [0])
                    for i in range(self._quads * 4):
                        T.buffer_store(self._sums, fused(self._given[mine + i], own, self._sums[i]), [i])

    def _load(self, chunk: Expr, at: int) -> None:
        """A chunk's sums; zeros where the row sees nothing of it."""
        chunk = T.Bind(chunk)
        for i in range(self._quads * 4):
            T.buffer_store(self._given, T.float32(0.0), [at * 4 + i])
        with when(self._real(chunk)):
            for quad in range(self._quads):
                d = (quad * WARP + self._lane) * 4
                with when(d < self._dim):
                    place = address(self._workspace, self._partial(chunk) * self._dim + d)
                    load_floats(self._given, (at + quad) * 4, place, 4)


def _added(values: list[Expr]) -> Expr:
    """Their sum, one after the other."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return T.Bind(total)
