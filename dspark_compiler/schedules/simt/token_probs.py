"""Logits to the distribution tokens are drawn from.

The maximum of a row is found chunk by chunk. A greedy row is written chunk by chunk, too, and so is one that only has a
temperature or a least weight. Where there are other rules, a single work group does all (row_limits.py). Sums are in
fixed point.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.awaited import hands_on
from dspark_compiler.schedules.simt.fixed_point import as_float, fixed
from dspark_compiler.schedules.simt.group_counts import group_min, group_sums_int64, held, variable
from dspark_compiler.schedules.simt.row_chunks import THREADS, RowChunks
from dspark_compiler.schedules.simt.row_limits import LOWEST, NOWHERE, WEIGHT_BITS, RowLimits
from dspark_compiler.schedules.simt.threads import group_max, launch, registers
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

Workspaces = tuple[Arg, Arg, Arg]


@made_once
def token_probs(
    name: str, batch: int, rows: int, vocab: int, *, awaits: bool = False
) -> tuple[tvm.tirx.PrimFunc, Workspaces]:
    """The distributions of [batch, rows] tokens; semantics are the operator's. And its workspaces.

    Arguments: logits [B,R,V], temperature [B], top_k int32 [B], top_p [B], min_p [B], out [B,R,V], the workspaces
    (anything in them). ``awaits``: the logits may be yet to come (awaited.py).
    """
    chunks = RowChunks(vocab)
    shape, control = (batch, rows, vocab), (batch,)
    parts = (batch * rows, chunks.count)
    workspaces = (Arg("peaks", parts), Arg("places", parts, "int32"), Arg("sums", parts, "int64"))
    args = [
        Arg("logits", shape),
        Arg("temperature", control),
        Arg("top_k", control, "int32"),
        Arg("top_p", control),
        Arg("min_p", control),
        Arg("out", shape),
        *workspaces,
    ]

    def body(*buffers: Buffer) -> None:
        of = dict(zip((arg.name for arg in args), buffers, strict=True))
        with launch((chunks.count, batch * rows), THREADS) as (chunk, task, thread):
            _Row(chunks, of, task, rows, thread).find_peak(chunk, awaits=awaits)
        with launch((chunks.count, batch * rows), THREADS) as (chunk, task, thread):
            row = _Row(chunks, of, task, rows, thread)
            row.peak()
            with T.If(row.temperature == T.float32(0.0)):
                with T.Then():
                    row.greedy(chunk)
                with T.Else(), T.If(row.limited):
                    with T.Then(), when(chunk == 0):
                        row.sampled()
                    with T.Else():
                        row.weigh_chunk(chunk)
        with launch((chunks.count, batch * rows), THREADS) as (chunk, task, thread):
            row = _Row(chunks, of, task, rows, thread)
            with when(T.And(row.temperature != T.float32(0.0), T.Not(row.limited))):
                row.normalize_chunk(chunk)

    function = kernel(name, args, body)
    return hands_on(function, args, awaits=["logits"]) if awaits else function, workspaces


class _Row:
    """Emits the steps for one row; between them ``out`` holds scores, then weights, then probabilities."""

    def __init__(self, chunks: RowChunks, of: dict[str, Buffer], task: Expr, rows: int, thread: Expr) -> None:
        self._chunks, self._of, self._task, self._thread = chunks, of, task, thread
        self._seq, self._at = T.Bind(task // rows), (T.Bind(task // rows), T.Bind(task % rows))
        self.temperature = T.Bind(of["temperature"][self._seq])

    @property
    def limited(self) -> Expr:
        """Whether the row has rules for which all of it must be known."""
        top_k, top_p = self._of["top_k"][self._seq], self._of["top_p"][self._seq]
        return T.Or(T.And(top_k > 0, top_k < self._chunks.extent), top_p < T.float32(1.0))

    def find_peak(self, chunk: Expr, *, awaits: bool) -> None:
        """The highest logit of a chunk and the first place it is at, to the workspaces."""
        best, place = variable(T.float32(LOWEST), "float32"), variable(T.int32(NOWHERE), "int32")
        read = self._chunks.await_all if awaits else self._chunks.read_all
        logits = read(chunk, self._thread, self._of["logits"], self._at)
        for number, i, inside in self._chunks.places(chunk, self._thread):
            with when(T.And(inside, logits[number] > best[0])):
                T.buffer_store(best, logits[number], [0])
                T.buffer_store(place, i, [0])
        highest = group_max(best[0], self._thread, THREADS)
        # Of places where it is not, none is the first.
        first = T.Select(best[0] == highest, place[0], T.int32(NOWHERE))
        earliest = group_min(first, self._thread, THREADS)
        with when(self._thread == 0):
            T.buffer_store(self._of["peaks"], highest, [self._task, chunk])
            T.buffer_store(self._of["places"], earliest, [self._task, chunk])

    def peak(self) -> None:
        """The same of the whole row, from there."""
        best, place = variable(T.float32(LOWEST), "float32"), variable(T.int32(0), "int32")
        peaks, places = self._parts("peaks"), self._parts("places")
        for chunk in range(self._chunks.count):
            with when(peaks[chunk] > best[0]):
                T.buffer_store(best, peaks[chunk], [0])
                T.buffer_store(place, places[chunk], [0])
        self._highest, self._first = T.Bind(best[0]), T.Bind(place[0])

    def greedy(self, chunk: Expr) -> None:
        """1 for the first of the highest logits, 0 for all others."""
        one, zero = T.float32(1.0), T.float32(0.0)
        self._chunks.each(chunk, self._thread, lambda i: self._store(T.Select(i == self._first, one, zero), i))

    def weigh_chunk(self, chunk: Expr) -> None:
        """Weights of a chunk, the highest of the row 1, and their sum to the workspace."""
        peak, min_p = held(self._highest / self.temperature, "float32"), T.Bind(self._of["min_p"][self._seq])
        total = variable(T.int64(0), "int64")
        logits = self._chunks.read_all(chunk, self._thread, self._of["logits"], self._at)
        for number, i, inside in self._chunks.places(chunk, self._thread):
            weight = held(T.exp(logits[number] / self.temperature - peak), "float32")
            with when(inside):
                kept = held(T.Select(weight >= min_p, weight, T.float32(0.0)), "float32")
                self._store(kept, i)
                T.buffer_store(total, total[0] + fixed(kept, WEIGHT_BITS), [0])
        (whole,) = group_sums_int64([total[0]], self._thread, THREADS)
        with when(self._thread == 0):
            T.buffer_store(self._of["sums"], whole, [self._task, chunk])

    def normalize_chunk(self, chunk: Expr) -> None:
        """Weights of a chunk over the sum of all."""
        total, sums = variable(T.int64(0), "int64"), self._parts("sums")
        weights = self._chunks.read_all(chunk, self._thread, self._of["out"], self._at)
        for part in range(self._chunks.count):
            T.buffer_store(total, total[0] + sums[part], [0])
        divisor = held(as_float(total[0], WEIGHT_BITS), "float32")
        for number, i, inside in self._chunks.places(chunk, self._thread):
            with when(inside):
                self._store(weights[number] / divisor, i)

    def _parts(self, name: str) -> Buffer:
        """What each chunk has left in a workspace, read at once."""
        source = self._of[name]
        found = registers(self._chunks.count, source.dtype)
        for chunk in range(self._chunks.count):
            T.buffer_store(found, source[self._task, chunk], [chunk])
        return found

    def sampled(self) -> None:
        """All of a row with other rules."""
        limits = RowLimits(self._chunks, self._of, self._of["out"], self._at, self._thread)
        limits.find(self._highest, lambda i: self._of["logits"][(*self._at, i)])
        divisor = held(as_float(limits.total(), WEIGHT_BITS), "float32")
        limits.each(lambda value, i: self._store(value / divisor, i))

    def _store(self, value: Expr, i: Expr) -> None:
        T.buffer_store(self._of["out"], value, [*self._at, i])
