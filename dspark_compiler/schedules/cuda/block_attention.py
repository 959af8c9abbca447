"""Attention of a draft block to a ring and to itself: a cluster for a few query rows, a stretch of keys for each block.

A block's groups of warps take 32 keys at a time each: products of the rows with them, softmax with a running maximum
(Milakov & Gimelshein 2018, arXiv 1805.02867), then the values. Last, each block puts a part of the output together from
the sums of all groups of all blocks.
"""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.block_attention import BlockShape
from dspark_compiler.schedules.cuda import functions
from dspark_compiler.schedules.cuda.async_copy import commit_copies, wait_copies
from dspark_compiler.schedules.cuda.clusters import MOST_BLOCKS, cluster_barrier, from_block, launch_clusters
from dspark_compiler.schedules.cuda.loops import unrolled
from dspark_compiler.schedules.cuda.memory import copy_from
from dspark_compiler.schedules.cuda.row_registers import variable
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, registers, shared
from dspark_compiler.schedules.cuda.warps import reduce_float
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, vector, when, widest_vector

_ROWS, _KEYS = 16, WARP  # query rows and keys at a time
_GROUP = 128  # threads that work on the same keys
_MINE = _ROWS * WARP // _GROUP  # rows of a warp
_MASKED = -1e30


def block_attention(
    name: str,
    shape: BlockShape,
    scale: float,
    *,
    dtype: str = "float32",
    in_dtype: str = "float32",
    out_dtype: str = "float32",
) -> tvm.tirx.PrimFunc:
    """Attention of each block to its ring's last min(length, W - spare) tokens and to all of itself.

    Arguments: q [B,H,S,D], k [B,G,T,D], v [B,G,T,Dv] of ``in_dtype``, k_ring [B,G,W,D], v_ring [B,G,W,Dv] of ``dtype``,
    length int32 [B], out [B,S,H,Dv] of ``out_dtype``.
    """
    parts = -(-shape.rows // _ROWS)
    groups = max(1, min(4, 1024 // (shape.head_dim + shape.value_dim)))

    def body(*buffers: Buffer) -> None:
        *operands, length, out = buffers
        with launch_clusters(MOST_BLOCKS, (shape.kv_heads * parts, shape.batch), groups * _GROUP) as axes:
            block, piece, row, thread = axes
            head, first = T.Bind(piece // parts), T.Bind(piece % parts * _ROWS)
            part = _Part(shape, groups, (row, head, first), block, thread)
            part.attend(operands, scale, T.Bind(length[row]))
            part.combine(lambda value, *at: T.buffer_store(out, T.cast(value, out_dtype), [row, *at]))

    batch, kv_heads, places = shape.batch, shape.kv_heads, shape.places
    args = [
        Arg("q", (batch, shape.heads, shape.width, shape.head_dim), in_dtype),
        Arg("k", (batch, kv_heads, shape.fresh, shape.head_dim), in_dtype),
        Arg("v", (batch, kv_heads, shape.fresh, shape.value_dim), in_dtype),
        Arg("k_ring", (batch, kv_heads, places, shape.head_dim), dtype),
        Arg("v_ring", (batch, kv_heads, places, shape.value_dim), dtype),
        Arg("length", (batch,), "int32"),
        Arg("out", (batch, shape.width, shape.heads, shape.value_dim), out_dtype),
    ]
    return kernel(name, args, body)


class _Part:
    """Emits what one block does for the query rows of a key/value head from ``first`` on."""

    def __init__(self, shape: BlockShape, groups: int, at: tuple[Expr, Expr, Expr], block: Expr, thread: Expr) -> None:
        self._shape, self._groups, self._block, self._thread = shape, groups, block, thread
        self._row, self._head, self._first = at
        self._group, self._member = T.Bind(thread // _GROUP), T.Bind(thread % _GROUP)
        self._lane, self._warp = T.Bind(thread % WARP), T.Bind(thread % _GROUP // WARP)
        # A key's row is longer by 16 bytes: lanes read the same column of different rows.
        self._stride = shape.head_dim + 4
        self._q = shared((_ROWS, shape.head_dim), dynamic=True)
        self._k = shared(groups * _KEYS * self._stride, dynamic=True)
        self._v = shared(groups * _KEYS * shape.value_dim, dynamic=True)
        self._weights, self._decay = shared((groups, _KEYS, _ROWS)), shared((groups, _ROWS))
        self._sums = shared((groups, _ROWS, shape.value_dim), dynamic=True)
        self._highest, self._totals = shared((groups, _ROWS)), shared((groups, _ROWS))
        # Of all groups together.
        self._merged = shared((_ROWS, shape.value_dim))
        self._peak, self._total = shared(_ROWS), shared(_ROWS)
        # Elements of the output of a thread: one column, a few rows.
        self._items = -(-shape.value_dim * (_ROWS // _MINE) // _GROUP)

    def attend(self, operands: list[Buffer], scale: float, length: Expr) -> None:
        """Leaves the block's unnormalized sums, their highest logits and totals in shared memory."""
        shape = self._shape
        q, k, v, k_ring, v_ring = operands
        count = T.Bind(T.min(length, shape.places - shape.spare))
        start, end = T.Bind((length - count) % shape.places), T.Bind(count + shape.fresh)
        tiles = T.Bind((end + (_KEYS - 1)) // _KEYS)
        sources = MOST_BLOCKS * self._groups
        self._load_queries(q, scale)
        acc, peaks, totals = registers((self._items, _MINE)), registers(_MINE), registers(_MINE)
        for r in range(_MINE):
            T.buffer_store(peaks, T.float32(_MASKED), [r])
            T.buffer_store(totals, T.float32(0.0), [r])
            for item in range(self._items):
                T.buffer_store(acc, T.float32(0.0), [item, r])
        with T.serial(0, (tiles + (sources - 1)) // sources) as step:
            base = T.Bind(((step * MOST_BLOCKS + self._block) * self._groups + self._group) * _KEYS)
            barrier()  # the last keys have been used
            self._load_tile((self._k, self._stride), k, k_ring, (base, count, start))
            commit_copies()
            self._load_tile((self._v, shape.value_dim), v, v_ring, (base, count, start))
            commit_copies()
            wait_copies(1)
            barrier()
            self._weigh(base + self._lane < end, peaks, totals)
            wait_copies(0)
            barrier()
            self._add_values(acc)
        barrier()  # sums may lie where values were
        for r in range(_MINE):
            with when(self._lane == 0):
                T.buffer_store(self._highest, peaks[r], [self._group, self._warp * _MINE + r])
                T.buffer_store(self._totals, totals[r], [self._group, self._warp * _MINE + r])
        for item in range(self._items):
            number, d = self._item(item)
            with when(number < _ROWS):
                for r in range(_MINE):
                    T.buffer_store(self._sums, acc[item, r], [self._group, number + r, d])

    def combine(self, put: Expr) -> None:
        """Calls put with the output's elements, and where each belongs."""
        self._combine_groups()
        barrier()  # which TVM asks for; the next is one, too
        cluster_barrier()
        shape = self._shape
        size = _ROWS * shape.value_dim
        share = min(-(-size // MOST_BLOCKS), self._groups * _GROUP)  # of a block's threads at a time
        with T.serial(0, -(-size // (share * MOST_BLOCKS))) as step:
            i = T.Bind((step * MOST_BLOCKS + self._block) * share + self._thread)
            r, d = T.Bind(i // shape.value_dim), T.Bind(i % shape.value_dim)
            number = T.Bind(self._first + r)
            with when(T.And(self._thread < share, T.And(i < size, number < shape.rows))):
                value, total = self._weighed_sums(
                    MOST_BLOCKS,
                    lambda block: from_block(block, self._peak, r),
                    lambda block: from_block(block, self._total, r),
                    lambda block: from_block(block, self._merged, r, d),
                )[1:]
                query = self._head * (shape.rows // shape.width) + number // shape.width
                put(value / total, number % shape.width, query, d)
        cluster_barrier()  # nobody leaves while others read here

    def _combine_groups(self) -> None:
        """Makes one of the sums of the block's groups: what other blocks have to read is a fraction then."""
        barrier()
        size, threads = _ROWS * self._shape.value_dim, self._groups * _GROUP
        with T.serial(0, -(-size // threads)) as step:
            i = T.Bind(step * threads + self._thread)
            r, d = T.Bind(i // self._shape.value_dim), T.Bind(i % self._shape.value_dim)
            with when(i < size):
                highest, value, total = self._weighed_sums(
                    self._groups,
                    lambda group: self._highest[group, r],
                    lambda group: self._totals[group, r],
                    lambda group: self._sums[group, r, d],
                )
                T.buffer_store(self._merged, value, [r, d])
                with when(d == 0):
                    T.buffer_store(self._peak, highest, [r])
                    T.buffer_store(self._total, total, [r])

    def _weighed_sums(
        self, count: int, peak: Callable[[Expr], Expr], part: Callable[[Expr], Expr], of: Callable[[Expr], Expr]
    ) -> tuple[Expr, Expr, Expr]:
        """The highest peak of some sources, and what sums and totals add up to, each as far below it as its own is."""
        highest = variable(T.float32(_MASKED), "float32")
        value, total = variable(T.float32(0.0), "float32"), variable(T.float32(0.0), "float32")
        with unrolled(count) as source:
            T.buffer_store(highest, T.max(highest[0], peak(source)), [0])
        with unrolled(count) as source:
            factor = T.Bind(functions.exp(peak(source) - highest[0]))
            T.buffer_store(value, value[0] + factor * of(source), [0])
            T.buffer_store(total, total[0] + factor * part(source), [0])
        return highest[0], value[0], total[0]

    def _load_queries(self, q: Buffer, scale: float) -> None:
        shape = self._shape
        threads = self._groups * _GROUP
        with T.serial(0, -(-_ROWS * shape.head_dim // threads)) as step:
            i = T.Bind(step * threads + self._thread)
            with when(i < _ROWS * shape.head_dim):
                r, d = T.Bind(i // shape.head_dim), T.Bind(i % shape.head_dim)
                # Rows past the last repeat it.
                number = T.Bind(T.min(self._first + r, shape.rows - 1))
                query = self._head * (shape.rows // shape.width) + number // shape.width
                value = T.cast(q[self._row, query, number % shape.width, d], "float32")
                T.buffer_store(self._q, value * T.float32(scale), [r, d])

    def _load_tile(
        self, target: tuple[Buffer, int], fresh: Buffer, ring: Buffer, bounds: tuple[Expr, Expr, Expr]
    ) -> None:
        """Starts copying keys or values from number base on: ``count`` of the ring, from ``start``, then the block's.

        ``target`` is where they go, and the elements from one to the next. Keys behind the last one get no weight, but
        must be numbers.
        """
        tile, stride = target
        base, count, start = bounds
        dim = int(ring.shape[3])
        lanes = widest_vector(dim, 4)
        size = _KEYS * dim // lanes
        direct = lanes == 4 and ring.dtype == fresh.dtype == "float32"
        with unrolled(-(-size // _GROUP)) as step:
            i = T.Bind(step * _GROUP + self._member)
            with when(i < size):
                key, d = T.Bind(i // (dim // lanes)), T.Bind(i % (dim // lanes) * lanes)
                number, place = T.Bind(base + key), T.Bind((self._group * _KEYS + key) * stride + d)
                slot = (start + number) % self._shape.places
                own = T.max(T.min(number - count, self._shape.fresh - 1), 0)
                sources = (ring, slot), (fresh, own)
                if direct:
                    there, here = (address(source, self._row, self._head, at, d) for source, at in sources)
                    copy_from(16, address(tile, place), there, here, number < count, tvm.tirx.const(True, "bool"))
                else:
                    with T.If(number < count):
                        for branch, (source, at) in zip((T.Then, T.Else), sources, strict=True):
                            with branch(), vector(lanes) as lane:
                                value = T.cast(source[self._row, self._head, at, d + lane], "float32")
                                T.buffer_store(tile, value, [place + lane])

    def _weigh(self, real: Expr, peaks: Buffer, totals: Buffer) -> None:
        """Weights of the lane's key for the warp's rows; what the rows' sums so far shrink by goes to ``decay``."""
        lanes = widest_vector(self._shape.head_dim, 4)
        logits, key, query = registers(_MINE), registers(lanes), registers(lanes)
        for r in range(_MINE):
            T.buffer_store(logits, T.float32(0.0), [r])
        with T.serial(0, self._shape.head_dim // lanes) as chunk:
            with vector(lanes) as lane:
                place = (self._group * _KEYS + self._lane) * self._stride + chunk * lanes
                T.buffer_store(key, self._k[place + lane], [lane])
            for r in range(_MINE):
                with vector(lanes) as lane:
                    T.buffer_store(query, self._q[self._warp * _MINE + r, chunk * lanes + lane], [lane])
                for i in range(lanes):
                    T.buffer_store(logits, logits[r] + query[i] * key[i], [r])
        for r in range(_MINE):
            logit = T.Bind(T.Select(real, logits[r], T.float32(_MASKED)))
            peak = T.Bind(T.max(peaks[r], reduce_float(logit, "max")))
            weight = T.Bind(T.Select(real, functions.exp(logit - peak), T.float32(0.0)))
            decay = functions.exp(peaks[r] - peak)
            T.buffer_store(totals, totals[r] * decay + reduce_float(weight), [r])
            T.buffer_store(peaks, peak, [r])
            T.buffer_store(self._weights, weight, [self._group, self._lane, self._warp * _MINE + r])
            with when(self._lane == 0):
                T.buffer_store(self._decay, decay, [self._group, self._warp * _MINE + r])

    def _add_values(self, acc: Buffer) -> None:
        """Adds the weighted values of all keys to what a thread has of the output."""
        items = [self._item(item) for item in range(self._items)]
        for item, (number, _) in enumerate(items):
            with when(number < _ROWS):
                for r in range(_MINE):
                    T.buffer_store(acc, acc[item, r] * self._decay[self._group, number + r], [item, r])
        weights = registers(_MINE)
        with T.serial(0, _KEYS) as key:
            for item, (number, d) in enumerate(items):
                with when(number < _ROWS):
                    value = T.Bind(self._v[(self._group * _KEYS + key) * self._shape.value_dim + d])
                    with vector(_MINE) as r:
                        T.buffer_store(weights, self._weights[self._group, key, number + r], [r])
                    for r in range(_MINE):
                        T.buffer_store(acc, acc[item, r] + weights[r] * value, [item, r])

    def _item(self, item: int) -> tuple[Expr, Expr]:
        """First row and column of number ``item`` of what a thread has of the output."""
        i = item * _GROUP + self._member
        return T.Bind(i // self._shape.value_dim * _MINE), T.Bind(i % self._shape.value_dim)
