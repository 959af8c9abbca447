"""Operators of speculative rounds: what a drafter remembers, and how tokens are drawn.

Shapes as in graph.draft_ops and graph.sampling_ops.
"""

import numpy as np
from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.nodes import shape_of
from dspark_compiler.lowering.onnx.attention import masked_logits, softmax_of
from dspark_compiler.lowering.onnx.emitter import Emitter, Tensor
from dspark_compiler.lowering.onnx.expression import BOOL, DOUBLE, FLOAT, INT32, INT64, Value, concat
from dspark_compiler.lowering.onnx.slots import counting, put, rows_of


def write_ring(node: fx.Node, emitter: Emitter) -> None:
    """dspark.write_ring: rows of tokens go to their places modulo the ring's."""
    given = bound_args(node)
    count, heads, width, dim = shape_of(given["rows"])
    start, places = emitter.get(given["length"]).cast(INT64), shape_of(given["ring"])[2]
    rows = rows_of(emitter, (count, width), start, places, count=given["count"], sequence=given["sequence"], ring=True)
    put(emitter, given["ring"], emitter.by_token(given["rows"], count, width, heads, dim), rows)


def read_ring(node: fx.Node, emitter: Emitter) -> Value:
    """dspark.read_ring: the last confirmed token's row, zeros before the first."""
    given = bound_args(node)
    rows, places = shape_of(given["length"])[0], shape_of(given["ring"])[2]
    length = emitter.get(given["length"]).cast(INT64)
    sequence = counting(emitter, rows) if given["sequence"] is None else emitter.get(given["sequence"]).cast(INT64)
    ring = emitter.get(given["ring"]).transpose(0, 2, 1, 3)  # [B,W,G,D]
    found = ring.op("GatherND", concat([sequence.unsqueeze(1), ((length - 1) % places).unsqueeze(1)], 1))  # [b,G,D]
    some = (length > 0).unsqueeze(1, 2)
    return some.where(found, 0.0).unsqueeze(2)


def block_attention(node: fx.Node, emitter: Emitter) -> Tensor:
    """dspark.block_attention: to the ring's confirmed tokens and to all of the block."""
    given = bound_args(node)
    rows, heads, width, dim = shape_of(given["q"])
    _, kv_heads, fresh, _ = shape_of(given["k"])
    places, scale = shape_of(given["k_ring"])[2], given["scale"]
    end = emitter.get(given["length"]).cast(INT64).unsqueeze(1)  # [b,1]
    last = end - 1
    position = last - (last - counting(emitter, places).unsqueeze(0)) % places  # of the token at each place, [b,W]
    live = (position >= 0) & (position >= end - (places - given["spare"]))
    shape = (rows, kv_heads, heads // kv_heads, width)
    queries = emitter.get(given["q"]).reshape(rows, kv_heads, heads // kv_heads * width, dim)
    every = emitter.constant(np.ones((1, 1, 1, fresh), np.bool_))
    parts = [(given["k_ring"], live.unsqueeze(1, 2), places), (given["k"], every, fresh)]
    scores = [
        masked_logits(queries, emitter.get(keys), mask, (*shape, count), scale, 0.0) for keys, mask, count in parts
    ]
    of_ring, of_block = softmax_of(scores, None, shape, [places, fresh])
    values = [emitter.get(given[name]) for name in ("v_ring", "v")]
    total = of_ring.op("MatMul", values[0]) + of_block.op("MatMul", values[1])
    by_head = (rows, heads, width, shape_of(node)[3])
    return Tensor(total.reshape(*by_head), by_head, shape_of(node), swapped=True)


def token_probs(node: fx.Node, emitter: Emitter) -> Value:
    """dspark.token_probs: the vocabulary is sorted only if somebody's top_k or top_p asks for it."""
    given = bound_args(node)
    _, _, vocab = shape_of(node)
    logits = emitter.get(given["logits"]).cast(FLOAT)
    temperature, top_p, min_p = (
        emitter.get(given[name]).unsqueeze(1, 2) for name in ("temperature", "top_p", "min_p")
    )  # [B,1,1]
    top_k = emitter.get(given["top_k"]).cast(INT64).unsqueeze(1, 2)
    first = logits.op("ArgMax", axis=-1, keepdims=1, dtype=INT64)
    greedy = counting(emitter, vocab).unsqueeze(0, 1).equals(first)
    is_greedy = temperature.equals(0.0)
    scores = logits / is_greedy.where(1.0, temperature)
    weights = (scores - scores.op("ReduceMax", emitter.numbers([2]), keepdims=1)).op("Exp")
    asked = ((top_k > 0) & (top_k < vocab)) | (top_p < 1.0)
    anybody = (asked & ~is_greedy).cast(INT32).op("ReduceMax", keepdims=0).cast(BOOL)
    kept = emitter.branch(
        anybody,
        lambda: _nucleus(emitter, scores, weights, top_k, top_p, vocab),
        lambda: weights.op("Identity"),
    )
    kept = (kept < min_p).where(0.0, kept)
    total = kept.cast(DOUBLE).sum(2, keep=True)
    probs = (kept.cast(DOUBLE) / total).cast(FLOAT)
    return is_greedy.where(greedy.cast(FLOAT), probs)


def _nucleus(emitter: Emitter, scores: Value, weights: Value, top_k: Value, top_p: Value, vocab: int) -> Value:
    """Weights [B,R,V] of the most likely top_k tokens that hold top_p, zeros for the others."""
    everything = emitter.numbers([vocab])
    descending, _ = emitter.ops("TopK", scores, everything, dtypes=(FLOAT, INT64), axis=-1, largest=1, sorted=1)
    place = ((top_k > 0) & (top_k < vocab)).where(top_k, vocab) - 1
    rows = descending.op("Mul", 0.0).slice(2, 0, 1).cast(INT64)  # [B,R,1]
    last = descending.op("GatherElements", place + rows, axis=2)
    kept = (scores < last).where(0.0, weights)
    ordered, order = emitter.ops("TopK", kept, everything, dtypes=(FLOAT, INT64), axis=-1, largest=1, sorted=1)
    exact = ordered.cast(DOUBLE)
    above = exact.op("CumSum", emitter.constant(np.asarray(2, np.int64))) - exact
    outside = (above >= top_p.cast(DOUBLE) * exact.sum(2, keep=True)) & (top_p < 1.0)
    return kept.op("ScatterElements", order, outside.where(0.0, ordered), axis=2)


def draw(node: fx.Node, emitter: Emitter) -> Value:
    """dspark.draw(probs, uniform)."""
    given = bound_args(node)
    return drawn(emitter, emitter.get(given["probs"]), emitter.get(given["uniform"]))


def drawn(emitter: Emitter, weights: Value, uniform: Value) -> Value:
    """The first token up to which more than ``uniform`` [B] of all weight [B,V] lies; never one without weight."""
    exact = weights.cast(DOUBLE)
    ladder = exact.op("CumSum", emitter.constant(np.asarray(1, np.int64)))
    some = weights > 0.0
    above = ((ladder > uniform.cast(DOUBLE).unsqueeze(1) * exact.sum(1, keep=True)) & some).cast(INT32)
    first = above.op("ArgMax", axis=1, keepdims=0, dtype=INT64)
    last = some.cast(INT32).op("ArgMax", axis=1, keepdims=0, select_last_index=1, dtype=INT64)
    found = above.op("ReduceMax", emitter.numbers([1]), keepdims=0) > 0
    return found.where(first, last)
