"""Attention of many tokens on Hopper: blocks that stay, two warpgroups multiply what a third one's thread loads.

A tile is 64 query rows a warpgroup: some tokens' of all heads of a key/value head (attention_group_tile.py). The rings
of stretches run on over tiles, so that the next one's loads go under this one's end. Tiles with most to do come first,
and a block that had more of one turn's than others has less of the next's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda import async_copy, wgmma
from dspark_compiler.schedules.cuda.attention_group_tile import GroupTile, Mask
from dspark_compiler.schedules.cuda.attention_rows import Problem, SlotRows, Span, span_of
from dspark_compiler.schedules.cuda.attention_stretches import (
    BARRIER_BYTES,
    COLUMNS,
    STRETCH,
    StretchRing,
    ring_bytes,
)
from dspark_compiler.schedules.cuda.attention_tiles import hide_unseen, store_rows
from dspark_compiler.schedules.cuda.attention_warp import WarpTile
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.launch_bounds import bounded_registers
from dspark_compiler.schedules.cuda.tensor_maps import SWIZZLE_128, TensorMap, tensor_map
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, device, launch, registers, shared
from dspark_compiler.schedules.cuda.tile_schedule import MULTIPROCESSORS
from dspark_compiler.schedules.gpu.attention_call import Tensors
from dspark_compiler.schedules.tir import Buffer, Expr, when

_GROUPS = 2
_ROWS = _GROUPS * wgmma.GROUP_ROWS
_MULTIPLIERS = _GROUPS * wgmma.WARPGROUP
_LOADER_REGISTERS, _MULTIPLIER_REGISTERS = 24, 240  # of a thread


def fits_warpgroups(problem: Problem, tensors: Tensors) -> bool:
    """Whether the kernel serves a call: heads of 64 or 128, plain caches alone, queries in the type of products."""
    shape = problem.shape
    dims = {shape.head_dim, shape.value_dim} <= {COLUMNS, 2 * COLUMNS}
    plain = not shape.scratch and not problem.form.storage.scaled
    return dims and plain and shape.group <= _ROWS and str(tensors["q"].dtype) == problem.dtype


def attend_in_warpgroups(problem: Problem, tensors: Tensors) -> None:
    """Launches the kernel that writes out [b,S,H,Dv]; 0 for tokens past the call's count."""
    shape = problem.shape
    blocks = min(_count(problem), MULTIPROCESSORS)
    maps = _Maps.of(problem, tensors)
    dims = (shape.head_dim, shape.value_dim)
    keys_at = _ROWS * shape.head_dim * 2
    values_at = keys_at + ring_bytes(shape.head_dim)
    barriers = values_at + ring_bytes(shape.value_dim)
    with launch((blocks,), _MULTIPLIERS + wgmma.WARPGROUP) as (block, thread), bounded_registers():
        memory = shared(barriers + 2 * BARRIER_BYTES + 16, "uint8", dynamic=True)
        rings = tuple(
            StretchRing(memory, at, barriers + i * BARRIER_BYTES, dim)
            for i, (at, dim) in enumerate(zip((keys_at, values_at), dims, strict=True))
        )
        work = _Work(problem, tensors, maps, memory, rings, barriers + 2 * BARRIER_BYTES, (block, blocks), thread)
        for ring in rings:
            ring.init(_MULTIPLIERS, thread)
        with when(thread == 0):
            async_copy.init_barrier(work.loaded, 1)
            async_copy.init_barrier(work.read, _MULTIPLIERS // WARP)
        barrier()
        await_previous()
        release_next()
        with T.If(thread < _MULTIPLIERS):
            with T.Then():
                wgmma.set_registers(_MULTIPLIER_REGISTERS, more=True)
                work.multiply()
            with T.Else():
                wgmma.set_registers(_LOADER_REGISTERS, more=False)
                with when(thread == _MULTIPLIERS):
                    work.load()


def _tokens(problem: Problem) -> int:
    """Tokens of a tile."""
    return _ROWS // problem.shape.group


def _count(problem: Problem) -> int:
    """Tiles of a call."""
    shape = problem.shape
    return -(-shape.width // _tokens(problem)) * shape.kv_heads * shape.rows


@dataclass(frozen=True)
class _Maps:
    """Queries as [b, H, S, D], keys and values as rows of all sequences, heads and slots."""

    q: TensorMap
    k: TensorMap
    v: TensorMap

    @staticmethod
    def of(problem: Problem, tensors: Tensors) -> "_Maps":
        """Emitted before the launch."""
        shape, dim = problem.shape, problem.shape.head_dim
        # Heads of a token before the next token's, as query rows are numbered.
        extents = (dim, shape.heads, shape.width, shape.rows)
        strides, box = (
            (shape.width * dim, dim, shape.heads * shape.width * dim),
            (COLUMNS, shape.group, _tokens(problem), 1),
        )
        q = tensor_map("q_rows", tensors["q"], extents, strides, box, swizzle=SWIZZLE_128)

        def cached(name: str, dim: int) -> TensorMap:
            rows = (dim, shape.batch * shape.kv_heads * shape.slots)
            return tensor_map(
                f"{name}_rows", tensors[f"{name}_cache"], rows, (dim,), (COLUMNS, STRETCH), swizzle=SWIZZLE_128
            )

        return _Maps(q, cached("k", dim), cached("v", shape.value_dim))


@dataclass(frozen=True)
class _Tile:
    """Where a tile's queries come from, and which slots they see: ``steps`` stretches from slot ``start`` on."""

    row: Expr  # of the call
    head: Expr  # of keys and values
    token: Expr  # the first
    span: Span
    start: Expr
    steps: Expr


@dataclass(frozen=True)
class _Work:
    """Emits what the threads of a block do; queries are at memory[0:], their two barriers at ``barriers``."""

    problem: Problem
    tensors: Tensors
    maps: _Maps
    memory: Buffer
    rings: tuple[StretchRing, ...]
    barriers: int
    block: tuple[Expr, int]  # its number, and how many there are
    thread: Expr

    @property
    def loaded(self) -> Expr:
        """The barrier of queries that are there."""
        return address(self.memory, self.barriers)

    @property
    def read(self) -> Expr:
        """The barrier of queries that nobody needs any more."""
        return address(self.memory, self.barriers + 8)

    def load(self) -> None:
        """The loading thread: a tile's queries, then its stretches."""
        shape, (keys, values) = self.problem.shape, self.rings
        for turn, done, tile in self._tiles():
            async_copy.wait_phase(self.read, 1 - turn % 2)
            async_copy.arrive_expecting(self.loaded, _tokens(self.problem) * shape.group * shape.head_dim * 2)
            for column in range(0, shape.head_dim, COLUMNS):
                at = (T.int32(column), tile.head * shape.group, tile.token, tile.row)
                self.maps.q.copy(address(self.memory, column * _ROWS * 2), at, self.loaded)
            first = T.Bind((tile.span.sequence * shape.kv_heads + tile.head) * shape.slots + tile.start)
            with T.serial(0, tile.steps) as step:
                keys.load(self.maps.k, done + step, first + step * STRETCH)
                values.load(self.maps.v, done + step, first + step * STRETCH)

    def multiply(self) -> None:
        """The multiplying warpgroups."""
        problem, thread, (keys, values) = self.problem, self.thread, self.rings
        sums = GroupTile(problem, self.memory, _ROWS, thread)
        for turn, done, tile in self._tiles():
            first = tile.token * problem.shape.group
            warp_row = T.Bind(_once(first + thread // WARP * 16))
            mask = self._mask(tile, warp_row)
            sums.start()
            async_copy.wait_phase(self.loaded, turn % 2)
            with when(tile.steps > 0):
                sums.first(keys, done, mask(T.int32(0)))
                with T.serial(1, tile.steps) as step:
                    sums.next(keys, values, done + step, mask(step))
            with when(thread % WARP == 0):
                async_copy.arrive(self.read)
            with when(tile.steps > 0):
                last = tile.steps - 1
                sums.last(values, done + last, tile.span.end - tile.start - last * STRETCH)
            sums.finish()
            end = T.min(first + _tokens(problem) * problem.shape.group, problem.rows)
            store_rows(problem, self.tensors, (tile.row, tile.head), sums, warp_row, end)

    def _mask(self, tile: "_Tile", warp_row: Expr) -> Callable[[Expr], Mask]:
        """Of a step: what hides that stretch's scores from a warp's rows that do not see them."""
        slots = SlotRows(self.problem, self.tensors, tile.span, tile.head)

        def hide(step: Expr, scores: WarpTile) -> None:
            hide_unseen(self.problem, tile.span, slots, scores, warp_row, tile.start + step * STRETCH)

        return lambda step: partial(hide, step)

    def _tiles(self) -> Iterator[tuple[Expr, Expr, _Tile]]:
        """The block's tiles: their turn, the steps done before, and the tile; what is emitted meanwhile works on it."""
        (block, blocks), count = self.block, _count(self.problem)
        done = registers(1, "int32")
        T.buffer_store(done, T.int32(0), [0])
        with T.serial(0, -(-count // blocks)) as turn:
            number = T.Bind(_once(turn * blocks + T.Select(turn % 2 == 0, block, blocks - 1 - block)))
            with when(number < count):
                tile = self._tile(number)
                yield turn, done[0], tile
                T.buffer_store(done, done[0] + tile.steps, [0])

    def _tile(self, number: Expr) -> _Tile:
        problem, shape, tokens = self.problem, self.problem.shape, _tokens(self.problem)
        heads = shape.kv_heads * shape.rows
        row, head = T.Bind(number % heads // shape.kv_heads), T.Bind(number % shape.kv_heads)
        token = T.Bind(_once((-(-shape.width // tokens) - 1 - number // heads) * tokens))
        span = span_of(problem, self.tensors, row)
        start = T.Bind(_once(span.first_visible(problem, token) // STRETCH * STRETCH))
        last = T.min(token + (tokens - 1), shape.width - 1)
        # Tokens past the count see nothing.
        stop = T.Select(span.used + token < span.end, T.min(span.end, span.used + last + 1), 0)
        steps = T.Bind(_once(T.max(stop - start + (STRETCH - 1), 0) // STRETCH))
        return _Tile(row, head, token, span, start, steps)


def _once(value: Expr) -> Expr:
    """The int32 ``value``, which TVM does not write out again, nor simplify, wherever it is used."""
    source = "__device__ __forceinline__ int dspark_once(int value) { return value; }\n"
    return device("dspark_once", value, source=source, returns="int32")
