"""Attention to a cache: one operator that writes it where it lies, or plain operators where that one does not do.

Shapes as in graph.cache_ops; R = H/G query heads share a key/value head.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import fx

from dspark_compiler.errors import LoweringError
from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.nodes import shape_of
from dspark_compiler.lowering.onnx.emitter import CONTRIB, Emitter, Tensor
from dspark_compiler.lowering.onnx.expression import FLOAT, INT32, INT64, Value, concat
from dspark_compiler.lowering.onnx.slots import counting, put, rows_of, used_slots

# Instead of minus infinity, so that rows of padding stay finite.
_NEVER = -1e30


def groups_queries(node: fx.Node) -> bool:
    """Whether GroupQueryAttention does what an append_attention does.

    It takes every token for a real one: what padding leaves behind a sequence's tokens must not be in use.
    """
    given = bound_args(node)
    (rows, _, width, dim), (batch, *_) = shape_of(given["q"]), shape_of(given["k_cache"])
    plain = all(given[name] is None for name in ("free", "slot_position", "k_scale", "v_scale"))
    return plain and dim % 8 == 0 and dim == shape_of(given["v"])[3] and rows == batch and (width == 1 or rows == 1)


def mark_grouped(node: fx.Node, grouped: bool) -> None:
    """Says whether an append_attention is to become GroupQueryAttention: its cache must have room for padding."""
    node.meta["grouped"] = grouped


def append_attention(node: fx.Node, emitter: Emitter) -> Tensor:
    """dspark.append_attention; rows of a call for all sequences are these in order."""
    given = bound_args(node)
    _plain(node, given)
    if node.meta.get("grouped", False):
        return _grouped(node, emitter, given)
    q, k, v, k_cache, v_cache = (given[name] for name in ("q", "k", "v", "k_cache", "v_cache"))
    batch, _, slots, _ = shape_of(k_cache)
    count, _, width, _ = shape_of(q)
    used = used_slots(emitter, given["length"], slots, given["free"])
    rows = rows_of(emitter, (count, width), used, slots, count=given["count"], sequence=given["sequence"])
    for value, cache in ((k, k_cache), (v, v_cache)):
        _, heads, _, dim = shape_of(value)
        put(emitter, cache, emitter.by_token(value, count, width, heads, dim), rows)
    seen = None
    if given["slot_position"] is not None:
        heads = shape_of(k)[1]
        start = emitter.get(given["length"]).unsqueeze(1)
        positions = (start + counting(emitter, width).cast(INT32).unsqueeze(0)).unsqueeze(2)
        put(emitter, given["slot_position"], positions.expand(count, width, heads), rows)
        seen = _of_call(emitter, given["slot_position"], given["sequence"], count, batch)
    keys, values = (_of_call(emitter, cache, given["sequence"], count, batch) for cache in (k_cache, v_cache))
    query = counting(emitter, width).unsqueeze(0, 1, 3)  # [1,1,S,1]
    mask = counting(emitter, slots).unsqueeze(0, 1, 2) <= used.unsqueeze(1, 2, 3) + query
    mask = mask if (near := _near(emitter, given, slots, width, seen)) is None else mask & near
    weights = _weights(emitter, given, [(keys, mask, slots)])
    return _mixed(node, emitter, weights, [values])


def scratch_attention(node: fx.Node, emitter: Emitter) -> Tensor:
    """dspark.scratch_attention: slots and scratch are looked at apart, so that the cache need not be copied."""
    given = bound_args(node)
    _plain(node, given)
    slots, (_, _, width, _) = shape_of(given["k_cache"])[2], shape_of(given["q"])
    used = used_slots(emitter, given["length"], slots, given["free"])
    fresh = []
    for name in ("k", "v"):
        scratch, rows = given[f"{name}_scratch"], emitter.get(given[name])
        fresh.append(rows)
        places = shape_of(scratch)[2]
        rest = [] if places == width else [emitter.get(scratch).slice(2, width, places)]
        emitter.write(scratch, concat([rows, *rest], 2))
    seen = None if given["slot_position"] is None else emitter.get(given["slot_position"])
    live = counting(emitter, slots).unsqueeze(0, 1, 2) < used.unsqueeze(1, 2, 3)
    live = live if (near := _near(emitter, given, slots, width, seen)) is None else live & near
    distance = np.arange(width)[:, None] - np.arange(width)
    causal = (distance >= 0) & (distance < (given["window"] or width))
    parts = [
        (emitter.get(given["k_cache"]), live, slots),
        (fresh[0], emitter.constant(causal[None, None]), width),
    ]
    return _mixed(node, emitter, _weights(emitter, given, parts), [emitter.get(given["v_cache"]), fresh[1]])


def commit_scratch(node: fx.Node, emitter: Emitter) -> None:
    """dspark.commit_scratch: accepted rows of scratch go to the slots after the live ones."""
    given = bound_args(node)
    _plain(node, given)
    batch, heads, slots, _ = shape_of(given["k_cache"])
    width = shape_of(given["k_scratch"])[2]
    used = used_slots(emitter, given["length"], slots, given["free"])
    rows = rows_of(emitter, (batch, width), used, slots, count=given["accepted"])
    for name in ("k", "v"):
        put(emitter, given[f"{name}_cache"], emitter.get(given[f"{name}_scratch"]).transpose(0, 2, 1, 3), rows)
    if given["slot_position"] is not None:
        start = emitter.get(given["length"]).unsqueeze(1)
        positions = (start + counting(emitter, width).cast(INT32).unsqueeze(0)).unsqueeze(2)
        put(emitter, given["slot_position"], positions.expand(batch, width, heads), rows)


def _grouped(node: fx.Node, emitter: Emitter, given: dict[str, Any]) -> Tensor:
    """As GroupQueryAttention, whose past and present may be the same memory."""
    (rows, heads, width, dim), kv_heads = shape_of(given["q"]), shape_of(given["k"])[1]
    length = emitter.get(given["length"])
    tokens = [
        emitter.by_token(given[name], rows, width, count * dim)
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    ]
    sinks = [] if given["sinks"] is None else [None, None, None, None, emitter.get(given["sinks"])]
    caches = given["k_cache"], given["v_cache"]
    out, *written = emitter.ops(
        "GroupQueryAttention",
        *tokens,
        *(emitter.get(cache) for cache in caches),
        length + (width - 1),
        _most_tokens(emitter, length, tokens[0].dtype, shape_of(caches[0])[2], rows, width),
        *sinks,
        dtypes=[tokens[0].dtype] * 3,
        domain=CONTRIB,
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=given["scale"],
        softcap=given["softcap"],
        local_window_size=given["window"] or -1,
    )
    for cache, value in zip(caches, written, strict=True):
        emitter.write(cache, value)
    return emitter.tensor_of(node, out, (rows, width, heads * dim))


def _most_tokens(emitter: Emitter, length: Value, dtype: ir.DataType, slots: int, rows: int, width: int) -> Value:
    """How many tokens the longest sequence has with those of the call, or a bound of that.

    CUDA's kernel reads it on the host without waiting for what the GPU computes: there it has to be a constant.
    """
    if dtype == ir.DataType.FLOAT16:
        return emitter.constant(np.asarray([slots], np.int32))
    return (length if rows == 1 else length.op("ReduceMax", keepdims=1)) + width


def _of_call(emitter: Emitter, state: fx.Node, sequence: fx.Node, count: int, batch: int) -> Value:
    """A state of the sequences of a call's rows, [b,…]."""
    value = emitter.get(state)
    return value if count == batch else value.gather(emitter.get(sequence).cast(INT64))


def _near(emitter: Emitter, given: dict[str, Any], slots: int, width: int, seen: Value | None) -> Value | None:
    """Which slots a query's window holds, [b,G,S,C] or [b,1,S,C]; None without one.

    ``seen`` int32 [b,G,C] are the positions of slots' tokens; without them a slot's token has its position.
    """
    window: int = given["window"]
    if not window:
        return None
    query = emitter.get(given["length"]).unsqueeze(1, 2, 3) + counting(emitter, width).cast(INT32).unsqueeze(0, 1, 3)
    key = counting(emitter, slots).cast(INT32).unsqueeze(0, 1, 2) if seen is None else seen.unsqueeze(2)
    return query - key < window


def _weights(emitter: Emitter, given: dict[str, Any], parts: list[tuple[Value, Value, int]]) -> list[Value]:
    """What each query pays the keys of each part, [b,G,R*S,T] each: keys [b,G,T,D] and which of them it sees."""
    (rows, heads, width, dim), kv_heads = shape_of(given["q"]), shape_of(given["k"])[1]
    group = heads // kv_heads
    queries = emitter.get(given["q"]).reshape(rows, kv_heads, group * width, dim)
    scores = [
        masked_logits(queries, keys, mask, (rows, kv_heads, group, width, count), given["scale"], given["softcap"])
        for keys, mask, count in parts
    ]
    sinks = sinks_of(emitter, given["sinks"], kv_heads)
    return softmax_of(scores, sinks, (rows, kv_heads, group, width), [count for *_, count in parts])


def sinks_of(emitter: Emitter, sinks: fx.Node | None, kv_heads: int) -> Value | None:
    """Sinks [H] as float32 [1,G,R,1,1]."""
    return None if sinks is None else emitter.get(sinks).cast(FLOAT).reshape(1, kv_heads, -1, 1, 1)


def masked_logits(
    queries: Value, keys: Value, mask: Value, shape: tuple[int, ...], scale: float, softcap: float
) -> Value:
    """Scores float32 [b,G,R,S,T] of queries [b,G,R*S,D] for keys [b,G,T,D]; an axis of mask [b,G,S,T] may be 1."""
    product = queries.op("FusedMatMul", keys.cast(queries.dtype), domain=CONTRIB, transB=1, alpha=scale)
    scores = product.cast(FLOAT).reshape(*shape)
    if softcap > 0:
        scores = (scores / softcap).op("Tanh") * softcap
    return mask.unsqueeze(2).where(scores, _NEVER)


def softmax_of(
    scores: list[Value], sinks: Value | None, shape: tuple[int, int, int, int], counts: list[int]
) -> list[Value]:
    """Softmax over all parts together, [b,G,R*S,T] each; ``sinks`` [1,G,R,1,1] take a part of it."""
    rows, kv_heads, group, width = shape
    columns = [] if sinks is None else [sinks.expand(rows, kv_heads, group, width, 1)]
    weights = concat([*scores, *columns], 4).op("Softmax", axis=-1)
    if len(counts) + len(columns) == 1:
        return [weights.reshape(rows, kv_heads, group * width, counts[0])]
    ends = np.cumsum([0, *counts]).tolist()
    return [
        weights.slice(4, start, end).reshape(rows, kv_heads, group * width, end - start)
        for start, end in pairwise(ends)
    ]


def _mixed(node: fx.Node, emitter: Emitter, weights: list[Value], values: list[Value]) -> Tensor:
    """The sum of values [b,G,T,Dv] by weight."""
    rows, width, heads, dim = shape_of(node)
    products = [part.cast(value.dtype).op("MatMul", value) for part, value in zip(weights, values, strict=True)]
    total = products[0] if len(products) == 1 else products[0] + products[1]
    by_head = total.reshape(rows, heads, width, dim)
    return Tensor(by_head, (rows, heads, width, dim), shape_of(node), swapped=True)


def _plain(node: fx.Node, given: dict[str, Any]) -> None:
    if any(given.get(name) is not None for name in ("k_scale", "v_scale")):
        raise LoweringError(f"{node.name}: a quantized cache has no ONNX form in this version; leave out --kv-dtype")
