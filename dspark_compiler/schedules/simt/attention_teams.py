"""The inner part of attention: teams take slots in turn, each with a running softmax, and put their parts together.

Running softmax after Milakov & Gimelshein 2018 (arXiv 1805.02867), parts of a sequence after FlashDecoding. A slot goes
to the same team and chunk whatever the number of query rows, and one that is masked for a row leaves its sums as they
are: a token's output is bit for bit the same from decode and verify.
"""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.cache_rows import Problem, Span, Tensors, span_of
from dspark_compiler.schedules.simt.stored import elements_at_once, load
from dspark_compiler.schedules.simt.threads import TEAM, barrier, launch, registers, shared, team_sum
from dspark_compiler.schedules.tir import Buffer, Expr, when

FEW_TOKENS = 32  # of a call whose slots are split into chunks

_THREADS = 128
_TEAMS = _THREADS // TEAM
_CHUNK = 256  # slots
_MOST_REGISTERS = 64  # floats of queries and of sums that a thread holds
_MOST_ROWS = 4  # query rows written out one after the other
_MASKED = -1e30  # finite: a team may meet slots it does not see before the first it does


def chunks_of(problem: Problem) -> int:
    """Chunks of slots that a call is split into."""
    return -(-problem.slots // _CHUNK) if problem.shape.width <= FEW_TOKENS else 1


def partial_size(problem: Problem) -> int:
    """Floats of the workspace: for each row of the call, query row and chunk the values, their weight, the maximum."""
    shape = problem.shape
    return shape.rows * shape.kv_heads * problem.rows * chunks_of(problem) * (shape.value_dim + 2)


def attend(problem: Problem, tensors: Tensors) -> None:
    """Launches the attention of all query rows, chunk by chunk; a single chunk writes "out"."""
    shape = problem.shape
    block = _rows_together(problem)
    blocks = -(-problem.rows // block)
    with launch((chunks_of(problem), shape.kv_heads * blocks, shape.rows), _THREADS) as (chunk, place, row, thread):
        span = span_of(problem, tensors, row)
        head, first = T.Bind(place // blocks), T.Bind(place % blocks * block)
        lane, team = T.Bind(thread % TEAM), T.Bind(thread // TEAM)
        work = _Block(problem, tensors, span, row, head, first, block, lane, team)
        work.begin(chunk)
        work.take_slots(chunk)
        work.put_together(chunk, thread)


def combine(problem: Problem, tensors: Tensors) -> None:
    """Launches the last step where there are several chunks: "out" of what they left in the workspace."""
    shape, chunks, width = problem.shape, chunks_of(problem), problem.shape.value_dim + 2
    with launch((problem.rows, shape.kv_heads, shape.rows), _THREADS) as (m, head, row, thread):
        parts = T.Bind((((row * shape.kv_heads + head) * problem.rows + m) * chunks) * width)
        workspace, peak, total, value = tensors["workspace"], registers(1), registers(1), registers(1)
        T.buffer_store(peak, T.float32(_MASKED), [0])
        with T.serial(0, chunks) as chunk:
            T.buffer_store(peak, T.max(peak[0], workspace[parts + chunk * width + shape.value_dim + 1]), [0])
        T.buffer_store(total, T.float32(0.0), [0])
        with T.serial(0, chunks) as chunk:
            weight = T.exp(workspace[parts + chunk * width + shape.value_dim + 1] - peak[0])
            T.buffer_store(total, total[0] + workspace[parts + chunk * width + shape.value_dim] * weight, [0])
        with T.serial(0, -(-shape.value_dim // _THREADS)) as turn:
            d = T.Bind(turn * _THREADS + thread)
            with when(d < shape.value_dim):
                T.buffer_store(value, T.float32(0.0), [0])
                with T.serial(0, chunks) as chunk:
                    weight = T.exp(workspace[parts + chunk * width + shape.value_dim + 1] - peak[0])
                    T.buffer_store(value, value[0] + workspace[parts + chunk * width + d] * weight, [0])
                at = [row, m // shape.group, head * shape.group + m % shape.group, d]
                T.buffer_store(tensors["out"], _quotient(value[0], total[0]), at)


def _rows_together(problem: Problem) -> int:
    """Query rows a work group holds at a time."""
    shape = problem.shape
    return max(1, min(problem.rows, _MOST_ROWS, _MOST_REGISTERS * TEAM // (shape.head_dim + shape.value_dim)))


def _quotient(value: Expr, total: Expr) -> Expr:
    """Rows of padding have seen nothing; they get zeros."""
    return T.Select(total > T.float32(0.0), value / total, T.float32(0.0))


@dataclass(frozen=True)
class _Pieces:
    """How a team's lanes share a row of a head: ``count`` accesses of ``each`` elements a lane, side by side."""

    each: int
    count: int

    @staticmethod
    def of(dim: int, dtype: str) -> "_Pieces":
        own = dim // TEAM
        each = min(elements_at_once(dtype), own & -own)
        return _Pieces(each, own // each)

    def element(self, lane: Expr, number: int) -> Expr:
        """The element of the row that is number ``number`` of a lane's."""
        piece, offset = divmod(number, self.each)
        return (piece * TEAM + lane) * self.each + offset


class _Block:
    """A work group's query rows, first..first+block of one key/value head, over one chunk of slots."""

    def __init__(
        self,
        problem: Problem,
        tensors: Tensors,
        span: Span,
        row: Expr,
        head: Expr,
        first: Expr,
        block: int,
        lane: Expr,
        team: Expr,
    ) -> None:
        self._problem, self._tensors, self._span = problem, tensors, span
        self._row, self._head, self._first, self._block = row, head, first, block
        self._lane, self._team = lane, team
        shape = problem.shape
        self._keys, self._values = _Pieces.of(shape.head_dim, problem.dtype), _Pieces.of(shape.value_dim, problem.dtype)
        self._own_keys, self._own_values = shape.head_dim // TEAM, shape.value_dim // TEAM
        self._q, self._sums = registers((block, self._own_keys)), registers((block, self._own_values))
        self._peak, self._total = registers(block), registers(block)

    def begin(self, chunk: Expr) -> None:
        """Queries, scaled, and empty sums; a sink is a slot seen first, of weight 1 of itself and no value."""
        scoring = self._problem.scoring
        for i in range(self._block):
            token, head = self._query(i)
            for number in range(self._own_keys):
                value = self._tensors["q"][self._row, head, token, self._keys.element(self._lane, number)]
                T.buffer_store(self._q, value * T.float32(scoring.scale), [i, number])
            for number in range(self._own_values):
                T.buffer_store(self._sums, T.float32(0.0), [i, number])
            T.buffer_store(self._peak, T.float32(_MASKED), [i])
            T.buffer_store(self._total, T.float32(0.0), [i])
            if scoring.sinks:
                with when(T.And(chunk == 0, self._team == 0)):
                    T.buffer_store(self._peak, self._tensors["sinks"][head], [i])
                    T.buffer_store(self._total, T.float32(1.0), [i])

    def take_slots(self, chunk: Expr) -> None:
        """All slots of the chunk that a row may see, a team one in ``_TEAMS``."""
        span, problem = self._span, self._problem
        tokens = T.Bind((self._first + self._block - 1) // problem.shape.group)
        stop = T.Bind(T.min(span.end, span.used + T.min(tokens, problem.shape.width - 1) + 1))
        begin = chunk * _CHUNK if chunks_of(problem) > 1 else T.int32(0)
        if problem.scoring.window and not problem.form.slot_position:
            seen = T.max(span.used + self._first // problem.shape.group + (1 - problem.scoring.window), 0)
            begin = T.max(begin, seen // _TEAMS * _TEAMS)
        begin = T.Bind(begin)
        if chunks_of(problem) > 1:
            stop = T.Bind(T.min(stop, (chunk + 1) * _CHUNK))
        with T.serial(0, T.max((stop - begin + (_TEAMS - 1)) // _TEAMS, 0)) as turn:
            slot = T.Bind(begin + turn * _TEAMS + self._team)
            self._take(slot, T.Bind(T.min(slot, stop - 1)), T.Bind(slot < stop))

    def put_together(self, chunk: Expr, thread: Expr) -> None:
        """The teams' parts as one, in "out" or in the workspace."""
        shape, block = self._problem.shape, self._block
        sums, peaks, totals = shared((_TEAMS, block, shape.value_dim)), shared((_TEAMS, block)), shared((_TEAMS, block))
        for i in range(block):
            for number in range(self._own_values):
                at = [self._team, i, self._values.element(self._lane, number)]
                T.buffer_store(sums, self._sums[i, number], at)
            with when(self._lane == 0):
                T.buffer_store(peaks, self._peak[i], [self._team, i])
                T.buffer_store(totals, self._total[i], [self._team, i])
        barrier()
        with T.serial(0, -(-block * shape.value_dim // _THREADS)) as turn:
            unit = T.Bind(turn * _THREADS + thread)
            i, d = T.Bind(unit // shape.value_dim), T.Bind(unit % shape.value_dim)
            with when(T.And(unit < block * shape.value_dim, self._first + i < self._problem.rows)):
                peak, total, value = registers(1), registers(1), registers(1)
                T.buffer_store(peak, T.float32(_MASKED), [0])
                with T.serial(0, _TEAMS) as team:
                    T.buffer_store(peak, T.max(peak[0], peaks[team, i]), [0])
                T.buffer_store(total, T.float32(0.0), [0])
                T.buffer_store(value, T.float32(0.0), [0])
                with T.serial(0, _TEAMS) as team:
                    weight = T.Bind(T.exp(peaks[team, i] - peak[0]))
                    T.buffer_store(total, total[0] + totals[team, i] * weight, [0])
                    T.buffer_store(value, value[0] + sums[team, i, d] * weight, [0])
                self._store(chunk, self._first + i, d, value[0], total[0], peak[0])

    def _store(self, chunk: Expr, m: Expr, d: Expr, value: Expr, total: Expr, peak: Expr) -> None:
        shape, chunks = self._problem.shape, chunks_of(self._problem)
        if chunks == 1:
            at = [self._row, m // shape.group, self._head * shape.group + m % shape.group, d]
            T.buffer_store(self._tensors["out"], _quotient(value, total), at)
            return
        width, workspace = shape.value_dim + 2, self._tensors["workspace"]
        line = (self._row * shape.kv_heads + self._head) * self._problem.rows + m
        part = T.Bind((line * chunks + chunk) * width)
        T.buffer_store(workspace, value, [part + d])
        with when(d == 0):
            T.buffer_store(workspace, total, [part + shape.value_dim])
            T.buffer_store(workspace, peak, [part + shape.value_dim + 1])

    def _query(self, i: int) -> tuple[Expr, Expr]:
        """Token and query head of a row; of rows there are not those of the last."""
        m = T.Bind(T.min(self._first + i, self._problem.rows - 1))
        group = self._problem.shape.group
        return T.Bind(m // group), T.Bind(self._head * group + m % group)

    def _take(self, slot: Expr, valid: Expr, there: Expr) -> None:
        """One slot: scores, weights, values; ``valid`` is it, or one that can be read where it is not ``there``."""
        key, value = registers(self._own_keys), registers(self._own_values)
        self._fetch("k", key, self._keys, valid)
        self._fetch("v", value, self._values, valid)
        for i in range(self._block):
            score = registers(1)
            T.buffer_store(score, T.float32(0.0), [0])
            for number in range(self._own_keys):
                T.buffer_store(score, T.fma(self._q[i, number], key[number], score[0]), [0])
            total = T.Bind(self._capped(team_sum(score[0])))
            seen = T.Bind(T.And(there, self._sees(i, slot)))
            peak = T.Bind(T.Select(seen, T.max(self._peak[i], total), self._peak[i]))
            decay = T.Bind(T.exp(self._peak[i] - peak))
            weight = T.Bind(T.Select(seen, T.exp(total - peak), T.float32(0.0)))
            T.buffer_store(self._peak, peak, [i])
            T.buffer_store(self._total, T.fma(self._total[i], decay, weight), [i])
            for number in range(self._own_values):
                kept = self._sums[i, number] * decay
                T.buffer_store(self._sums, T.fma(weight, value[number], kept), [i, number])

    def _capped(self, score: Expr) -> Expr:
        if not self._problem.scoring.softcap:
            return score
        cap = T.float32(self._problem.scoring.softcap)
        return T.tanh(score / cap) * cap

    def _sees(self, i: int, slot: Expr) -> Expr:
        """Whether a query row sees a slot."""
        span, scoring, problem = self._span, self._problem.scoring, self._problem
        token = self._query(i)[0]
        seen = T.And(slot <= span.used + token, slot < span.end)
        if not scoring.window:
            return seen
        if not problem.form.slot_position:
            return T.And(seen, slot > span.used + token - scoring.window)
        return T.And(seen, self._position(slot) > span.length + token - scoring.window)

    def _position(self, slot: Expr) -> Expr:
        """Position of the token in ``slot``, where slots keep theirs."""
        span, slots = self._span, self._problem.shape.slots
        known = self._tensors["slot_position"][span.sequence, self._head, T.max(T.min(slot, slots - 1), 0)]
        return T.Select(slot < span.used, known, span.length + slot - span.used)

    def _fetch(self, name: str, target: Buffer, pieces: _Pieces, slot: Expr) -> None:
        """A lane's share of a key or value, out of live slots or of scratch."""
        span, shape = self._span, self._problem.shape
        for piece in range(pieces.count):
            d = pieces.element(self._lane, piece * pieces.each)
            live = self._tensors[f"{name}_cache"]
            if not shape.scratch:
                load(target, piece * pieces.each, live, (span.sequence, self._head, slot, d), pieces.each)
                continue
            scratch = self._tensors[f"{name}_scratch"]
            with T.If(slot < span.used):
                with T.Then():
                    load(target, piece * pieces.each, live, (span.sequence, self._head, slot, d), pieces.each)
                with T.Else():
                    at = (span.sequence, self._head, slot - span.used, d)
                    load(target, piece * pieces.each, scratch, at, pieces.each)
