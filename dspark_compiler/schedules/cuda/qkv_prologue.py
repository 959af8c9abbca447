"""From the fused projection to attention in one launch: head norms, rotary positions, and the cache written.

A warp takes one head of one token. What attention reads afterwards is the compute dtype, rounded once.
"""

from dataclasses import dataclass
from itertools import product as product_of

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.cuda.attention_rows import Problem
from dspark_compiler.schedules.cuda.cache_args import cache_args, check_heads
from dspark_compiler.schedules.cuda.cache_codes import Pair
from dspark_compiler.schedules.cuda.cache_writes import NewSlot
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.floats import fused, product
from dspark_compiler.schedules.cuda.memory import load_floats, store_word
from dspark_compiler.schedules.cuda.mma import pack_pair
from dspark_compiler.schedules.cuda.threads import WARP, address, launch, registers
from dspark_compiler.schedules.cuda.warp import from_lane
from dspark_compiler.schedules.gpu.attention_call import Tensors
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_WARPS = 4
_PLAIN = CacheForm()


@dataclass(frozen=True)
class Prologue:
    """What happens to queries and keys before they are stored."""

    eps: float | None = None  # of the RMSNorm over each head; None: there is none
    rope: bool = True


@dataclass(frozen=True)
class HeadShape:
    """Tokens of a row, and sizes of a head of queries or keys and of one of values."""

    width: int
    head_dim: int
    value_dim: int


@made_once
def qkv_prologue(
    name: str, shape: AttentionShape, work: Prologue, dtype: str, form: CacheForm = _PLAIN
) -> tvm.tirx.PrimFunc:
    """Kernel that reads the projection x and writes q [b,H,S,D] of ``dtype`` and the new keys and values.

    Arguments: x float32 [b S, H D + G D + G Dv], [q_weight, k_weight float32 [D] with eps], [cos, sin float32
    [b,1,S,D] with rope], the cache (cache_args.py) with length int32 [b] for control if the shape has scratch, else
    sequence, length, count int32 [b]; q. Keys and values go where the attention of the same shape
    (``written_attention``) looks for them.

    Raises:
        LoweringError: head sizes that are no multiples of 8.
    """
    check_heads(shape)
    problem = Problem(shape, Scoring(1.0), form, dtype, dtype)
    args = _args(problem, work)
    heads = shape.heads + 2 * shape.kv_heads

    def body(*buffers: Buffer) -> None:
        tensors = Tensors(dict(zip((arg.name for arg in args), buffers, strict=True)))
        with launch((-(-heads // _WARPS), shape.width, shape.rows), _WARPS * WARP) as (group, token, row, thread):
            await_previous()
            release_next()
            number, lane = T.Bind(group * _WARPS + thread // WARP), T.Bind(thread % WARP)
            head = Head(HeadShape(shape.width, shape.head_dim, shape.value_dim), work, tensors, (row, token), lane)
            slot = NewSlot(problem, tensors, row, token)
            kv_head = T.Bind(number - shape.heads)
            with when(number < shape.heads):
                for pair in head.rotate("q", number * shape.head_dim):
                    with when(pair.inside):
                        word = pack_pair(head.values[pair.at], head.values[pair.at + 1], dtype)
                        store_word(address(tensors["q"], row, number, token, pair.d), word)
            with when(T.And(kv_head >= 0, kv_head < shape.kv_heads)):
                pairs = head.rotate("k", number * shape.head_dim)
                slot.store_row("k", kv_head, head.values, pairs, lane)
                slot.store_position(kv_head, T.And(slot.fits, lane == 0))
            value_head = T.Bind(kv_head - shape.kv_heads)
            with when(T.And(value_head >= 0, value_head < shape.kv_heads)):
                start = (shape.heads + shape.kv_heads) * shape.head_dim + value_head * shape.value_dim
                slot.store_row("v", value_head, head.values, head.load(start), lane)

    return kernel(name, args, body)


def _args(problem: Problem, work: Prologue) -> list[Arg]:
    shape = problem.shape
    columns = (shape.heads + shape.kv_heads) * shape.head_dim + shape.kv_heads * shape.value_dim
    table = (shape.rows, 1, shape.width, shape.head_dim)
    control = ("length",) if shape.scratch else ("sequence", "length", "count")
    return [
        Arg("x", (shape.rows * shape.width, columns)),
        *([Arg(f"{each}_weight", (shape.head_dim,)) for each in "qk"] if work.eps is not None else []),
        *([Arg(each, table) for each in ("cos", "sin")] if work.rope else []),
        *cache_args(shape, problem.dtype, problem.form, [Arg(each, (shape.rows,), "int32") for each in control]),
        Arg("q", (shape.rows, shape.heads, shape.width, shape.head_dim), problem.dtype),
    ]


class Head:
    """A warp's head: lanes hold pairs of neighbours, of both halves where those turn together.

    Attributes:
        values: what they hold, float32.
    """

    def __init__(
        self, shape: HeadShape, work: Prologue, tensors: Tensors, token: tuple[Expr, Expr], lane: Expr
    ) -> None:
        """Reads "x", "cos" and "sin", and weights of norms, of the ``tensors`` for a row's token."""
        self._shape, self._work, self._tensors, self._token, self._lane = shape, work, tensors, token, lane
        self._row = T.Bind(token[0] * shape.width + token[1])
        self._turns = -(-shape.head_dim // (4 * WARP))
        # Of each turn: two of the first half, two of the second.
        self.values = registers(max(self._turns * 4, -(-shape.value_dim // (2 * WARP)) * 2))

    def _clear(self) -> None:
        for i in range(int(self.values.shape[0])):
            T.buffer_store(self.values, T.float32(0.0), [i])

    def rotate(self, name: str, start: Expr) -> list[Pair]:
        """Norm and rotation of the head that begins at column ``start``; where its elements are then."""
        half, turns, values = self._shape.head_dim // 2, self._turns, self.values
        cos, sin = registers(turns * 4), registers(turns * 4)  # of the same elements
        self._clear()
        row, token = self._token
        pairs = []
        for turn, part in product_of(range(turns), range(2)):
            d = T.Bind(turn * 2 * WARP + self._lane * 2)
            pair = Pair(part * half + d, d < half, turn * 4 + part * 2)
            pairs.append(pair)
            with when(pair.inside):
                load_floats(values, pair.at, address(self._tensors["x"], self._row, start + pair.d), 2)
                for table, target in (("cos", cos), ("sin", sin)) if self._work.rope else ():
                    load_floats(target, pair.at, address(self._tensors[table], row, 0, token, pair.d), 2)
        scale = self._inverse_root()
        for turn in range(turns):
            first, second = pairs[2 * turn : 2 * turn + 2]
            with when(first.inside):
                scaled = [
                    self._scaled(values[pair.at + i], scale, name, pair.d + i)
                    for pair, i in product_of((first, second), range(2))
                ]
                if self._work.rope:
                    others = (-scaled[2], -scaled[3], scaled[0], scaled[1])
                    scaled = [
                        T.Bind(fused(value, cos[turn * 4 + i], product(other, sin[turn * 4 + i])))
                        for i, (value, other) in enumerate(zip(scaled, others, strict=True))
                    ]
                for i, value in enumerate(scaled):
                    T.buffer_store(values, value, [turn * 4 + i])
        return pairs

    def load(self, start: Expr) -> list[Pair]:
        """The value head that begins at column ``start`` as it is; where its elements are then."""
        self._clear()
        pairs = []
        for turn in range(-(-self._shape.value_dim // (2 * WARP))):
            d = T.Bind(turn * 2 * WARP + self._lane * 2)
            pairs.append(Pair(d, d < self._shape.value_dim, turn * 2))
            with when(pairs[-1].inside):
                load_floats(self.values, turn * 2, address(self._tensors["x"], self._row, start + d), 2)
        return pairs

    def _inverse_root(self) -> Expr:
        """1 / sqrt(mean of squares + eps), if there is a norm."""
        if self._work.eps is None:
            return T.float32(1.0)
        total = registers(1)
        T.buffer_store(total, T.float32(0.0), [0])
        for i in range(self._turns * 4):
            T.buffer_store(total, fused(self.values[i], self.values[i], total[0]), [0])
        for distance in (1, 2, 4, 8, 16):
            T.buffer_store(total, total[0] + from_lane(total[0], distance), [0])
        mean = fused(total[0], T.float32(1.0 / self._shape.head_dim), T.float32(self._work.eps))
        return T.Bind(T.float32(1.0) / T.sqrt(mean))

    def _scaled(self, value: Expr, scale: Expr, name: str, d: Expr) -> Expr:
        if self._work.eps is None:
            # TVM would write a name out again as the element it stands for, which is stored over meanwhile.
            return T.Bind(product(value, T.float32(1.0)))
        return T.Bind(product(product(value, scale), self._tensors[f"{name}_weight"][d]))
