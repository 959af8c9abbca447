"""The inner part of attention: a tile of query tokens of one head over the slots it sees, block by block."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules import vector_math
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.attention_slots import BlockTables
from dspark_compiler.schedules.cache_writes import Places
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Buffer, Expr, fill, local, vector, widest_vector

_BLOCK = 128  # slots a softmax block holds
_MASKED = -1e30  # finite: a row of a tile may meet blocks it does not see before the first it does


@dataclass(frozen=True)
class Operands:
    """Buffers of a call. ``fresh`` holds new keys and values that are not in live slots, or is None."""

    q: Buffer
    cache: Places
    fresh: Places | None
    sinks: Buffer | None
    out: Buffer


@dataclass(frozen=True)
class Tile:
    """Query tokens first..first+height of one head, and what they may see."""

    row: Expr  # of the call
    seq: Expr  # of the cache
    head: Expr
    first: Expr
    height: int
    used: Expr  # slots in use before the call
    length: Expr  # tokens confirmed before the call
    end: Expr  # slots and new tokens visible to the last token


def tile_height(shape: AttentionShape, isa: VectorIsa) -> int:
    """Query tokens handled together: a divisor of S whose accumulators fit the registers."""
    limit = max(1, isa.registers * 3 // 4 // min(4, max(1, shape.value_dim // isa.lanes)))
    return max(h for h in range(1, limit + 1) if shape.width % h == 0)


class TileEmitter:
    """Emits one tile: scores of a block, their softmax relative to the running maximum, the weighted values."""

    def __init__(
        self,
        shape: AttentionShape,
        scoring: Scoring,
        isa: VectorIsa,
        form: CacheForm,
        operands: Operands,
        tile: Tile,
    ) -> None:
        self._shape, self._scoring, self._isa, self._load = shape, scoring, isa, form.storage.load
        self._op, self._tile = operands, tile
        self._group = T.Bind(tile.head // shape.group)
        self._value_lanes = widest_vector(shape.value_dim, isa.lanes)
        self._maximum, self._total = local(tile.height), local(tile.height)
        self._acc = local((tile.height, shape.value_dim))
        self._scores = local((tile.height, _BLOCK))
        self._tables = BlockTables(form, scoring.window, _BLOCK, isa.lanes)

    def emit(self) -> None:
        """All blocks, then the division by the sum of weights."""
        tile, window = self._tile, self._scoring.window
        for i in range(tile.height):
            self._start(i)
        stop = T.Bind(T.min(tile.end, tile.used + tile.first + tile.height))
        # Where positions are looked up a window may begin anywhere; the cache then holds little else.
        skips = window and self._tables.position is None
        begin = T.Bind(T.max(tile.used + tile.first - window + 1, 0) // _BLOCK if skips else T.int32(0))
        with T.serial(0, T.max((stop + (_BLOCK - 1)) // _BLOCK - begin, 0)) as step:
            base = T.Bind((begin + step) * _BLOCK)
            at = (tile.seq, tile.row, self._group)
            self._tables.load(self._op.cache, self._op.fresh, at, (base, stop), (tile.used, tile.length))
            self._score_block(base, stop)
            for i in range(tile.height):
                self._softmax(i, base, T.min(tile.used + tile.first + i, tile.end - 1))
            self._add_values(base, stop)
        for i in range(tile.height):
            self._finish(i)

    def _start(self, i: int) -> None:
        """A sink is a slot seen first: it has a score, weight 1 of itself, and no value."""
        sinks = self._op.sinks
        start = T.float32(_MASKED) if sinks is None else sinks[self._tile.head]
        T.buffer_store(self._maximum, start, [i])
        T.buffer_store(self._total, T.float32(0.0 if sinks is None else 1.0), [i])
        self._for_values(lambda d: T.buffer_store(self._acc, T.float32(0.0), [i, d]))

    def _finish(self, i: int) -> None:
        tile, inverse = self._tile, T.Bind(T.float32(1.0) / self._total[i])
        at = (tile.row, tile.first + i, tile.head)
        self._for_values(lambda d: T.buffer_store(self._op.out, self._acc[i, d] * inverse, [*at, d]))

    def _for_values(self, emit: Callable[[Expr], None]) -> None:
        lanes = self._value_lanes
        with T.serial(0, self._shape.value_dim // lanes) as chunk, vector(lanes) as d:
            emit(chunk * lanes + d)

    def _score_block(self, base: Expr, stop: Expr) -> None:
        """scores[i, :] = q[i] . k[base : base+BLOCK], panel by panel; panels nobody sees stay as they are."""
        lanes = self._isa.lanes
        # Few query rows need several panels at once to keep the multiply-add units busy.
        together = max(1, min(_BLOCK // lanes, 8 // self._tile.height))
        while (_BLOCK // lanes) % together:
            together -= 1
        visible = T.min(stop - base, _BLOCK)
        with T.serial(0, (visible + (lanes * together - 1)) // (lanes * together)) as strip:
            slot = T.Bind(base + strip * (lanes * together))
            if self._op.fresh is None:
                self._score_live(slot, together, strip)
            else:
                self._score_mixed(self._op.fresh.k, slot, together, strip)

    def _score_mixed(self, fresh: Buffer, slot: Expr, together: int, strip: Expr) -> None:
        """Scores of panels that may hold new keys; where all are live nothing is put together first."""
        with T.If(slot + self._isa.lanes * together <= self._tile.used):
            with T.Then():
                self._score_live(slot, together, strip)
            with T.Else():
                gathered = self._gather(fresh, slot, together)
                self._dot(lambda p, d, lane: gathered[p, d, lane], together, strip)

    def _score_live(self, slot: Expr, together: int, strip: Expr) -> None:
        """Scores of panels in live slots, read where they are."""
        cache, seq, group, panel = self._op.cache.k, self._tile.seq, self._group, slot // self._isa.lanes
        # The last strip may reach past the cache's end; those lanes are masked, so any panel does.
        last = -(-self._shape.slots // self._isa.lanes) - 1
        self._dot(lambda p, d, lane: cache[seq, group, T.min(panel + p, last), d, lane], together, strip)

    def _dot(self, load: Callable[[int, Expr, Expr], Expr], together: int, strip: Expr) -> None:
        """Scores of ``together`` panels; load(panel, d, lane) is a key's element as stored."""
        lanes, tile, q = self._isa.lanes, self._tile, self._op.q
        sums = [[local(lanes) for _ in range(together)] for _ in range(tile.height)]
        for acc in (acc for line in sums for acc in line):
            fill(acc, 0, lanes, lanes, 0.0)
        with T.serial(0, self._shape.head_dim) as d:
            for i, line in enumerate(sums):
                for p, acc in enumerate(line):
                    with vector(lanes) as lane:
                        product = q[tile.row, tile.head, tile.first + i, d] * self._load(load(p, d, lane))
                        T.buffer_store(acc, acc[lane] + product, [lane])
        for i, line in enumerate(sums):
            for p, acc in enumerate(line):
                with vector(lanes) as lane:
                    slot = (strip * together + p) * lanes + lane
                    T.buffer_store(self._scores, self._scaled(acc[lane], slot), [i, slot])

    def _scaled(self, value: Expr, slot: Expr) -> Expr:
        """The score of a dot product with the key in the block's slot number ``slot``."""
        value = value * T.float32(self._scoring.scale)
        if self._tables.k_scale is not None:
            value = value * self._tables.k_scale[slot]
        if not self._scoring.softcap:
            return value
        cap = T.float32(self._scoring.softcap)
        return vector_math.tanh(value / cap) * cap

    def _gather(self, fresh: Buffer, slot: Expr, together: int) -> Buffer:
        """Panels from ``slot`` on: whole live ones are copied, the rest is put together from live and new keys."""
        lanes, dim, tile = self._isa.lanes, self._shape.head_dim, self._tile
        cache, seq, group = self._op.cache.k, tile.seq, self._group
        gathered = local((together, dim, lanes), cache.dtype)
        for p in range(together):
            start = slot + p * lanes
            with T.If(start + lanes <= tile.used):
                with T.Then(), T.serial(0, dim) as d, vector(lanes) as lane:
                    T.buffer_store(gathered, cache[seq, group, start // lanes, d, lane], [p, d, lane])
                with T.Else(), T.serial(0, lanes) as lane:
                    at = T.Bind(start + lane)
                    with T.If(at < tile.used):
                        with T.Then(), T.serial(0, dim) as d:
                            T.buffer_store(gathered, cache[seq, group, at // lanes, d, at % lanes], [p, d, lane])
                        with T.Else(), T.serial(0, dim) as d:
                            token = T.min(at - tile.used, self._shape.width - 1)
                            T.buffer_store(gathered, fresh[tile.row, group, token, d], [p, d, lane])
        return gathered

    def _softmax(self, i: int, base: Expr, limit: Expr) -> None:
        """Turns row i of the scores into weights relative to the running maximum; rescales what was summed before."""
        lanes, scores = self._isa.lanes, self._scores
        peak, partial, maximum = local(lanes), local(lanes), local(1)
        fill(peak, 0, lanes, lanes, _MASKED)
        with T.serial(0, _BLOCK // lanes) as chunk, vector(lanes) as lane:
            visible = self._visible(base + chunk * lanes + lane, chunk * lanes + lane, limit)
            value = T.Select(visible, scores[i, chunk * lanes + lane], T.float32(_MASKED))
            T.buffer_store(scores, value, [i, chunk * lanes + lane])
            T.buffer_store(peak, T.max(peak[lane], value), [lane])
        T.buffer_store(maximum, self._maximum[i], [0])
        with T.serial(0, lanes) as lane:
            T.buffer_store(maximum, T.max(maximum[0], peak[lane]), [0])
        decay = T.Bind(vector_math.exp(self._maximum[i] - maximum[0]))
        T.buffer_store(self._maximum, maximum[0], [i])
        fill(partial, 0, lanes, lanes, 0.0)
        with T.serial(0, _BLOCK // lanes) as chunk, vector(lanes) as lane:
            weight = vector_math.exp(scores[i, chunk * lanes + lane] - self._maximum[i])
            T.buffer_store(scores, weight, [i, chunk * lanes + lane])
            T.buffer_store(partial, partial[lane] + scores[i, chunk * lanes + lane], [lane])
            if self._tables.v_scale is not None:
                scaled = scores[i, chunk * lanes + lane] * self._tables.v_scale[chunk * lanes + lane]
                T.buffer_store(scores, scaled, [i, chunk * lanes + lane])
        T.buffer_store(self._total, self._total[i] * decay, [i])
        with T.serial(0, lanes) as lane:
            T.buffer_store(self._total, self._total[i] + partial[lane], [i])
        self._for_values(lambda d: T.buffer_store(self._acc, self._acc[i, d] * decay, [i, d]))

    def _visible(self, slot: Expr, number: Expr, limit: Expr) -> Expr:
        """Whether a token whose own slot is ``limit`` sees ``slot``, which is the block's slot ``number``."""
        window, positions = self._scoring.window, self._tables.position
        if not window:
            return slot <= limit
        if positions is None:
            return T.And(slot <= limit, slot > limit - window)
        own = limit - self._tile.used + self._tile.length
        return T.And(slot <= limit, positions[number] > own - window)

    def _add_values(self, base: Expr, stop: Expr) -> None:
        """acc[i] += sum over the block's visible slots, in order, of weight * value."""
        tile, fresh = self._tile, self._op.fresh
        stop = T.Bind(T.min(stop, base + _BLOCK))
        # Live slots first, then new tokens: in slot order either way.
        live = stop if fresh is None else T.Bind(T.max(T.min(stop, tile.used), base))
        vectors = self._shape.value_dim // self._value_lanes
        together = next(n for n in (4, 3, 2, 1) if vectors % n == 0)
        with T.serial(0, vectors // together) as chunk:
            origin = chunk * (together * self._value_lanes)
            sums = [[local(self._value_lanes) for _ in range(together)] for _ in range(tile.height)]
            self._for_sums(sums, origin, lambda acc, i, d, lane: T.buffer_store(acc, self._acc[i, d], [lane]))
            with T.serial(0, live - base) as t:
                self._weigh(sums, origin, t, lambda d: self._op.cache.v[tile.seq, self._group, base + t, d])
            if fresh is not None:
                with T.serial(0, T.max(stop - live, 0)) as t:
                    token = live + t - tile.used
                    self._weigh(sums, origin, live + t - base, lambda d: fresh.v[tile.row, self._group, token, d])
            self._for_sums(sums, origin, lambda acc, i, d, lane: T.buffer_store(self._acc, acc[lane], [i, d]))

    def _weigh(self, sums: list[list[Buffer]], origin: Expr, slot: Expr, value: Callable[[Expr], Expr]) -> None:
        """Sums += weight of ``slot``, counted from the block's start, times its value."""

        def add(acc: Buffer, i: int, d: Expr, lane: Expr) -> None:
            T.buffer_store(acc, acc[lane] + self._scores[i, slot] * self._load(value(d)), [lane])

        self._for_sums(sums, origin, add)

    def _for_sums(
        self, sums: list[list[Buffer]], origin: Expr, emit: Callable[[Buffer, int, Expr, Expr], None]
    ) -> None:
        """Calls emit(sum, row of the tile, value dimension, lane) for every register of ``sums``."""
        for i, line in enumerate(sums):
            for c, acc in enumerate(line):
                with vector(self._value_lanes) as lane:
                    emit(acc, i, origin + c * self._value_lanes + lane, lane)
