"""From the fused projection to attention in one launch: head norms, rotary positions, and the cache written.

A warp takes one head of one token. What attention reads afterwards is the compute dtype, rounded once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product as product_of

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.cuda.attention_rows import ELEMENTS, Problem, Tensors
from dspark_compiler.schedules.cuda.cache_writes import NewSlot
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.floats import fused, product
from dspark_compiler.schedules.cuda.memory import load_floats, store_word
from dspark_compiler.schedules.cuda.mma import pack_pair
from dspark_compiler.schedules.cuda.threads import WARP, address, launch, registers
from dspark_compiler.schedules.cuda.warp import from_lane
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_WARPS = 4
_PLAIN = CacheForm()
Store = Callable[[Expr, Expr, Expr], None]  # of an element's number, itself and its neighbour


@dataclass(frozen=True)
class Prologue:
    """What happens to queries and keys before they are stored."""

    eps: float | None = None  # of the RMSNorm over each head; None: there is none
    rope: bool = True


def qkv_prologue(
    name: str, shape: AttentionShape, work: Prologue, dtype: str, form: CacheForm = _PLAIN
) -> tvm.tirx.PrimFunc:
    """Kernel that reads the projection x and writes q [b,H,S,D] of ``dtype`` and the new keys and values.

    Arguments: x float32 [b S, H D + G D + G Dv], [q_weight, k_weight float32 [D] with eps], [cos, sin float32
    [b,1,S,D] with rope], k_cache [B,G,C,D], v_cache [B,G,C,Dv] of ``dtype``, then k_scratch, v_scratch [B,G,N,*] and
    length int32 [b] if the shape has scratch, else sequence, length, count int32 [b]; [free int32 [b]], [slot_position
    int32 [B,G,C]], q. Keys and values go where the attention of the same shape (``written_attention``) looks for them.

    Raises:
        LoweringError: a quantized cache, or head sizes that are no multiples of 8.
    """
    if form.storage.scaled or shape.head_dim % ELEMENTS or shape.value_dim % ELEMENTS:
        raise LoweringError("--target cuda: caches are not quantized, and head sizes multiples of 8")
    problem = Problem(shape, Scoring(1.0), form, dtype, dtype)
    args = _args(shape, work, dtype, form)
    heads = shape.heads + 2 * shape.kv_heads

    def body(*buffers: Buffer) -> None:
        tensors = Tensors(dict(zip((arg.name for arg in args), buffers, strict=True)))
        with launch((-(-heads // _WARPS), shape.width, shape.rows), _WARPS * WARP) as (group, token, row, thread):
            await_previous()
            release_next()
            number, lane = T.Bind(group * _WARPS + thread // WARP), T.Bind(thread % WARP)
            head = _Head(shape, work, tensors, (row, token), lane)
            slot = NewSlot(problem, tensors, row, token)
            kv_head = T.Bind(number - shape.heads)

            def store_query(d: Expr, low: Expr, high: Expr) -> None:
                store_word(address(tensors["q"], row, number, token, d), pack_pair(low, high, dtype))

            def store_key(d: Expr, low: Expr, high: Expr) -> None:
                with when(slot.fits):
                    slot.store("k", kv_head, d, pack_pair(low, high, dtype))

            with when(number < shape.heads):
                head.rotate("q", number * shape.head_dim, store_query)
            with when(T.And(kv_head >= 0, kv_head < shape.kv_heads)):
                head.rotate("k", number * shape.head_dim, store_key)
                slot.store_position(kv_head, T.And(slot.fits, lane == 0))
            value_head = T.Bind(kv_head - shape.kv_heads)
            with when(T.And(T.And(value_head >= 0, value_head < shape.kv_heads), slot.fits)):
                start = (shape.heads + shape.kv_heads) * shape.head_dim + value_head * shape.value_dim
                head.copy(start, lambda d, low, high: slot.store("v", value_head, d, pack_pair(low, high, dtype)))

    return kernel(name, args, body)


def _args(shape: AttentionShape, work: Prologue, dtype: str, form: CacheForm) -> list[Arg]:
    stored, dims = (shape.batch, shape.kv_heads), (shape.head_dim, shape.value_dim)
    columns = (shape.heads + shape.kv_heads) * shape.head_dim + shape.kv_heads * shape.value_dim
    table = (shape.rows, 1, shape.width, shape.head_dim)
    control = ("length",) if shape.scratch else ("sequence", "length", "count")
    return [
        Arg("x", (shape.rows * shape.width, columns)),
        *([Arg(f"{each}_weight", (shape.head_dim,)) for each in "qk"] if work.eps is not None else []),
        *([Arg(each, table) for each in ("cos", "sin")] if work.rope else []),
        *(Arg(f"{each}_cache", (*stored, shape.slots, dim), dtype) for each, dim in zip("kv", dims, strict=True)),
        *(
            Arg(f"{each}_scratch", (*stored, shape.scratch, dim), dtype)
            for each, dim in zip("kv", dims, strict=True)
            if shape.scratch
        ),
        *(Arg(each, (shape.rows,), "int32") for each in control),
        *([Arg("free", (shape.rows,), "int32")] if form.free else []),
        *([Arg("slot_position", (*stored, shape.slots), "int32")] if form.slot_position else []),
        Arg("q", (shape.rows, shape.heads, shape.width, shape.head_dim), dtype),
    ]


class _Head:
    """A warp's head: lanes hold pairs of neighbours, of both halves where those turn together."""

    def __init__(
        self, shape: AttentionShape, work: Prologue, tensors: Tensors, token: tuple[Expr, Expr], lane: Expr
    ) -> None:
        self._shape, self._work, self._tensors, self._token, self._lane = shape, work, tensors, token, lane
        self._row = T.Bind(token[0] * shape.width + token[1])

    def rotate(self, name: str, start: Expr, store: Store) -> None:
        """Norm and rotation of the head that begins at column ``start``."""
        half = self._shape.head_dim // 2
        turns = -(-half // (2 * WARP))
        # Of each turn: two of the first half, two of the second; likewise their cosines and sines.
        values, cos, sin = registers(turns * 4), registers(turns * 4), registers(turns * 4)
        for i in range(turns * 4):
            T.buffer_store(values, T.float32(0.0), [i])
        row, token = self._token
        for turn, part in product_of(range(turns), range(2)):
            d = T.Bind(turn * 2 * WARP + self._lane * 2)
            at = turn * 4 + part * 2
            with when(d < half):
                load_floats(values, at, address(self._tensors["x"], self._row, start + part * half + d), 2)
                for table, target in (("cos", cos), ("sin", sin)) if self._work.rope else ():
                    load_floats(target, at, address(self._tensors[table], row, 0, token, part * half + d), 2)
        scale = self._inverse_root(values)
        for turn in range(turns):
            d = T.Bind(turn * 2 * WARP + self._lane * 2)
            with when(d < half):
                scaled = [
                    self._scaled(values[turn * 4 + part * 2 + i], scale, name, part * half + d + i)
                    for part, i in product_of(range(2), range(2))
                ]
                if self._work.rope:
                    others = (-scaled[2], -scaled[3], scaled[0], scaled[1])
                    scaled = [
                        T.Bind(fused(value, cos[turn * 4 + i], product(other, sin[turn * 4 + i])))
                        for i, (value, other) in enumerate(zip(scaled, others, strict=True))
                    ]
                store(d, scaled[0], scaled[1])
                store(d + half, scaled[2], scaled[3])

    def copy(self, start: Expr, store: Store) -> None:
        """A value head as it is."""
        pair = registers(2)
        for first in range(0, self._shape.value_dim, 2 * WARP):
            d = T.Bind(first + self._lane * 2)
            with when(d < self._shape.value_dim):
                load_floats(pair, 0, address(self._tensors["x"], self._row, start + d), 2)
                store(d, pair[0], pair[1])

    def _inverse_root(self, values: Buffer) -> Expr:
        """1 / sqrt(mean of squares + eps), if there is a norm."""
        if self._work.eps is None:
            return T.float32(1.0)
        total = registers(1)
        T.buffer_store(total, T.float32(0.0), [0])
        for i in range(int(values.shape[0])):
            T.buffer_store(total, fused(values[i], values[i], total[0]), [0])
        for distance in (1, 2, 4, 8, 16):
            T.buffer_store(total, total[0] + from_lane(total[0], distance), [0])
        mean = fused(total[0], T.float32(1.0 / self._shape.head_dim), T.float32(self._work.eps))
        return T.Bind(T.float32(1.0) / T.sqrt(mean))

    def _scaled(self, value: Expr, scale: Expr, name: str, d: Expr) -> Expr:
        if self._work.eps is None:
            return value
        return T.Bind(product(product(value, scale), self._tensors[f"{name}_weight"][d]))
