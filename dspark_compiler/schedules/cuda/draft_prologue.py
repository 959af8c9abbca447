"""From a drafter's fused projections to its attention and its rings: head norms and rotary positions in one launch.

As in qkv_prologue.py a warp takes one head of one token; here all that is written is float32.
"""

from collections.abc import Callable, Sequence

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.block_attention import BlockShape
from dspark_compiler.schedules.cuda.cache_codes import Pair
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.memory import load_int, store_pair
from dspark_compiler.schedules.cuda.qkv_prologue import Head, HeadShape, Prologue
from dspark_compiler.schedules.cuda.threads import WARP, address, launch
from dspark_compiler.schedules.gpu.attention_call import Tensors
from dspark_compiler.schedules.ring import RingRows
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when

_WARPS = 4


def block_prologue(name: str, shape: BlockShape, work: Prologue) -> tvm.tirx.PrimFunc:
    """Kernel that makes what block attention reads of the projection of a block, as many keys as queries.

    Arguments: x float32 [B S, H D + G D + G Dv], [q_weight, k_weight float32 [D] with eps], [cos, sin float32
    [B,1,S,D] with rope], q [B,H,S,D], k [B,G,S,D], v [B,G,S,Dv], float32.
    """
    heads, kv_heads, dim, value_dim = shape.heads, shape.kv_heads, shape.head_dim, shape.value_dim
    starts = {"q": (0, 0), "k": (heads, heads * dim), "v": (heads + kv_heads, (heads + kv_heads) * dim)}
    columns = (heads + kv_heads) * dim + kv_heads * value_dim
    own = {"q": (heads, dim), "k": (kv_heads, dim), "v": (kv_heads, value_dim)}
    args = [
        *_reading(shape.batch, shape.width, columns, work, dim, [f"{each}_weight" for each in "qk"]),
        *(Arg(each, (shape.batch, count, shape.width, size)) for each, (count, size) in own.items()),
    ]

    def body(*buffers: Buffer) -> None:
        tensors = Tensors(dict(zip((arg.name for arg in args), buffers, strict=True)))
        with launch((-(-(heads + 2 * kv_heads) // _WARPS), shape.width, shape.batch), _WARPS * WARP) as axes:
            group, token, row, thread = axes
            await_previous()
            release_next()
            number, lane = T.Bind(group * _WARPS + thread // WARP), T.Bind(thread % WARP)
            head = Head(HeadShape(shape.width, dim, value_dim), work, tensors, (row, token), lane)
            for part, (count, _) in own.items():
                first, column = starts[part]
                mine = T.Bind(number - first)

                def put(pair: Pair, part: str = part, mine: Expr = mine) -> None:
                    place = address(tensors[part], row, mine, token, pair.d)
                    store_pair(place, head.values[pair.at], head.values[pair.at + 1])

                with when(T.And(mine >= 0, mine < count)):
                    start = column + mine * own[part][1]
                    _each(head.load(start) if part == "v" else head.rotate(part, start), put)

    return kernel(name, args, body)


def ring_prologue(name: str, rows: RingRows, work: Prologue) -> tvm.tirx.PrimFunc:
    """Kernel that puts keys, normed and rotated, and values to rings as write_ring does (gpu/ring.py).

    Arguments: x float32 [b S, L (G D + G Dv)], [k_weight.0 … float32 [D] with eps], [cos, sin float32 [b,1,S,D] with
    rope], k_ring.0, v_ring.0, … float32 [B,G,W,D or Dv], length, [sequence], [count] int32 [b].
    """
    shape, layers = rows.shape, range(rows.layers)
    args = [
        *_reading(
            shape.rows,
            shape.width,
            rows.columns * rows.layers,
            work,
            shape.dim,
            [f"k{layer}_weight" for layer in layers],
        ),
        *(
            Arg(f"{part}{layer}_ring", (shape.batch, shape.heads, shape.places, dim))
            for layer in layers
            for part, dim in (("k", shape.dim), ("v", rows.value_dim))
        ),
        *(Arg(each, (shape.rows,), "int32") for each in rows.control),
    ]

    def body(*buffers: Buffer) -> None:
        tensors = Tensors(dict(zip((arg.name for arg in args), buffers, strict=True)))
        with launch((-(-2 * shape.heads * rows.layers // _WARPS), shape.width, shape.rows), _WARPS * WARP) as axes:
            group, token, row, thread = axes
            await_previous()
            release_next()
            number, lane = T.Bind(group * _WARPS + thread // WARP), T.Bind(thread % WARP)
            head = Head(HeadShape(shape.width, shape.dim, rows.value_dim), work, tensors, (row, token), lane)
            told = {each: T.Bind(load_int(address(tensors[each], row))) for each in rows.control}
            real = T.Bind(T.min(told["count"], shape.width)) if rows.count else shape.width
            place = T.Bind((told["length"] + token) % shape.places)
            ring = told.get("sequence", row)
            for layer in layers:
                for half, part in enumerate("kv"):
                    mine = T.Bind(number - (2 * layer + half) * shape.heads)
                    dim = shape.dim if part == "k" else rows.value_dim

                    def put(pair: Pair, part: str = part, layer: int = layer, mine: Expr = mine) -> None:
                        to = address(tensors[f"{part}{layer}_ring"], ring, mine, place, pair.d)
                        store_pair(to, head.values[pair.at], head.values[pair.at + 1])

                    inside = T.And(mine >= 0, mine < shape.heads)
                    with when(T.And(inside, T.And(token < real, token >= real - shape.places))):
                        start = layer * rows.columns + half * shape.heads * shape.dim + mine * dim
                        _each(head.rotate(f"k{layer}", start) if part == "k" else head.load(start), put)

    return kernel(name, args, body)


def _reading(rows: int, width: int, columns: int, work: Prologue, dim: int, norms: Sequence[str]) -> list[Arg]:
    """What is read: the projection, weights of norms, tables of rotations."""
    return [
        Arg("x", (rows * width, columns)),
        *(Arg(each, (dim,)) for each in norms if work.eps is not None),
        *(Arg(each, (rows, 1, width, dim)) for each in ("cos", "sin") if work.rope),
    ]


def _each(pairs: Sequence[Pair], put: Callable[[Pair], None]) -> None:
    for pair in pairs:
        with when(pair.inside):
            put(pair)
