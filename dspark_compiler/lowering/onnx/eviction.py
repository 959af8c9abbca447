"""Operators that free cache slots: what scoring looks at, which slots go, and how the rest moves up.

Shapes as in graph.pruning_ops; all of them are of one sequence.
"""

from typing import Any

import numpy as np
from torch import fx

from dspark_compiler.errors import LoweringError
from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.nodes import shape_of
from dspark_compiler.lowering.onnx.attention import masked_logits, sinks_of, softmax_of
from dspark_compiler.lowering.onnx.elementwise import onnx_type
from dspark_compiler.lowering.onnx.emitter import CONTRIB, Emitter
from dspark_compiler.lowering.onnx.expression import FLOAT, INT32, INT64, Value, concat
from dspark_compiler.lowering.onnx.slots import counting, gathered, put, rows_of, used_slots

# Above every score, also those of slots that a policy wants to stay. CUDA's TopK fills up what it sorts with the
# largest float, and gives places of its padding for anything beyond that.
_SPARED = 3e38


def append_queries(node: fx.Node, emitter: Emitter) -> None:
    """dspark.append_queries: queries of confirmed tokens go to their places of the ring."""
    given = bound_args(node)
    count, heads, width, dim = shape_of(given["q"])
    start, places = emitter.get(given["length"]).cast(INT64), shape_of(given["ring"])[2]
    rows = rows_of(emitter, (count, width), start, places, count=given["count"], sequence=given["sequence"], ring=True)
    put(emitter, given["ring"], emitter.by_token(given["q"], count, width, heads, dim), rows)


def commit_queries(node: fx.Node, emitter: Emitter) -> None:
    """dspark.commit_queries: those of accepted tokens."""
    given = bound_args(node)
    batch, _, width, _ = shape_of(given["scratch"])
    start, places = emitter.get(given["length"]).cast(INT64), shape_of(given["ring"])[2]
    rows = rows_of(emitter, (batch, width), start, places, count=given["accepted"], ring=True)
    put(emitter, given["ring"], emitter.get(given["scratch"]).transpose(0, 2, 1, 3), rows)


def append_slot_scores(node: fx.Node, emitter: Emitter) -> None:
    """dspark.append_slot_scores: scores of confirmed tokens go to their slots."""
    given = bound_args(node)
    count, heads, width, _ = shape_of(given["score"])
    slots = shape_of(given["slot_score"])[2]
    used = used_slots(emitter, given["length"], slots, given["free"])
    rows = rows_of(emitter, (count, width), used, slots, count=given["count"], sequence=given["sequence"])
    put(emitter, given["slot_score"], emitter.by_token(given["score"], count, width, heads), rows)


def commit_slot_scores(node: fx.Node, emitter: Emitter) -> None:
    """dspark.commit_slot_scores: those of accepted tokens."""
    given = bound_args(node)
    batch, heads, width, _ = shape_of(given["scratch"])
    slots = shape_of(given["slot_score"])[2]
    used = used_slots(emitter, given["length"], slots, given["free"])
    rows = rows_of(emitter, (batch, width), used, slots, count=given["accepted"])
    scores = emitter.get(given["scratch"]).transpose(0, 2, 1, 3).reshape(batch, width, heads)
    put(emitter, given["slot_score"], scores, rows)


def write_scratch(node: fx.Node, emitter: Emitter) -> None:
    """dspark.write_scratch: the first rows of scratch."""
    given = bound_args(node)
    scratch, width = given["scratch"], shape_of(given["rows"])[2]
    places = shape_of(scratch)[2]
    rest = [] if places == width else [emitter.get(scratch).slice(2, width, places)]
    emitter.write(scratch, concat([emitter.get(given["rows"]), *rest], 2))


def read_state(node: fx.Node, emitter: Emitter) -> Value:
    """dspark.read_state(state, sequence), and read_keys and read_values of a cache in float32."""
    given = bound_args(node)
    state = next(iter(given.values()))
    _plain(node, given)
    return _of(emitter, state, given["sequence"]).cast(onnx_type(node.meta["val"].dtype))


def write_state(node: fx.Node, emitter: Emitter) -> None:
    """dspark.write_state(state, value, sequence)."""
    given = bound_args(node)
    _replace(emitter, given["state"], emitter.get(given["value"]), given["sequence"])


def attention_mass(node: fx.Node, emitter: Emitter) -> Value:
    """dspark.attention_mass: of every query in the ring; those that do not count are weighed with 0."""
    given = bound_args(node)
    _plain(node, given)
    ring, sequence = given["ring"], given["sequence"]
    (_, heads, places, dim), (_, kv_heads, slots, _) = shape_of(ring), shape_of(given["k_cache"])
    end = emitter.get(given["length"]).cast(INT64)
    used = used_slots(emitter, given["length"], slots, given["free"])
    counted = end.minimum(min(given["last"], places))
    if given["pending"] is not None:
        counted = counted.minimum(emitter.get(given["pending"]).cast(INT64))
    last = end - 1
    position = last - (last - counting(emitter, places)) % places  # of the query at each place, int64 [R]
    query = position.unsqueeze(0, 1, 3)
    key = _of(emitter, given["slot_position"], sequence).cast(INT64).unsqueeze(2)  # [1,G,1,C]
    mask = (key <= query) & (counting(emitter, slots) < used).unsqueeze(0, 1, 2)
    if given["window"]:
        mask = mask & (query - key < given["window"])
    group = heads // kv_heads
    shape = (1, kv_heads, group, places)
    queries = _of(emitter, ring, sequence).reshape(1, kv_heads, group * places, dim)
    keys = _of(emitter, given["k_cache"], sequence)
    scores = masked_logits(queries, keys, mask, (*shape, slots), given["scale"], given["softcap"])
    sinks = sinks_of(emitter, given["sinks"], kv_heads)
    (weights,) = softmax_of([scores], sinks, shape, [slots])
    counts = (position >= end - counted).cast(FLOAT).unsqueeze(0, 1, 3)
    mass = (weights.reshape(1, heads, places, slots) * counts).sum(2)
    return mass * (counting(emitter, slots) < used).cast(FLOAT)


def logit_moments(node: fx.Node, emitter: Emitter) -> Value:
    """dspark.logit_moments: over the queries that are real."""
    given = bound_args(node)
    _plain(node, given)
    (_, heads, count, dim), (_, kv_heads, slots, _) = shape_of(given["queries"]), shape_of(given["k_cache"])
    real = emitter.get(given["length"]).cast(INT64).minimum(count)
    counts = (counting(emitter, count) < real).cast(FLOAT).unsqueeze(0, 1, 3)
    number = real.cast(FLOAT).maximum(1)
    queries = emitter.get(given["queries"]).reshape(1, kv_heads, heads // kv_heads * count, dim)
    keys = _of(emitter, given["k_cache"], given["sequence"])
    logits = queries.op("FusedMatMul", keys.cast(queries.dtype), domain=CONTRIB, transB=1, alpha=given["scale"])
    logits = logits.reshape(1, heads, count, slots)
    mean = (logits * counts).sum(2, keep=True) / number
    apart = logits - mean
    variance = (apart * apart * counts).sum(2) / number
    return concat([mean.reshape(1, heads, slots), variance], 0)


def select_slots(node: fx.Node, emitter: Emitter) -> Value:
    """dspark.select_slots: in order of score, older ones first among equals, from the lowest on; the rest in order."""
    given = bound_args(node)
    _, heads, slots = shape_of(given["score"])
    end = emitter.get(given["length"]).cast(INT64)
    used = used_slots(emitter, given["length"], slots, given["free"])
    drop = (used + emitter.get(given["need"]).cast(INT64) - slots).maximum(0)
    every = counting(emitter, slots)
    position = _of(emitter, given["slot_position"], given["sequence"]).cast(INT64)
    spared = (position < given["first"]) | (position >= end - given["last"]) | (every >= used)
    _, order = _ascending(emitter, spared.where(_SPARED, emitter.get(given["score"])), slots)
    shape = (1, heads, slots)
    goes = (every < drop).expand(*shape)
    gone = emitter.constant(np.zeros(shape, np.bool_)).op("ScatterElements", order, goes, axis=2)
    stays = ~gone & (every < used)
    _, kept = _ascending(emitter, (~stays).cast(FLOAT) * slots + every.cast(FLOAT), slots)
    return (every < used - drop).where(kept.cast(INT32), emitter.number(-1, INT32))


def compact_slots(node: fx.Node, emitter: Emitter) -> None:
    """dspark.compact_slots: each slot takes what select_slots says; those no longer in use keep what they hold."""
    given = bound_args(node)
    _plain(node, given)
    source = emitter.get(given["source"]).cast(INT64)
    source = (source >= 0).where(source, counting(emitter, shape_of(given["source"])[2])).unsqueeze(3)
    for name in ("k_cache", "v_cache", "slot_position", "slot_score"):
        if given[name] is not None:
            old = _of(emitter, given[name], given["sequence"])
            moved = gathered(old, source, batch_dims=2)
            _replace(emitter, given[name], moved, given["sequence"])


def _ascending(emitter: Emitter, keys: Value, count: int) -> tuple[Value, ...]:
    """Keys of the last axis in order, equal ones as they come, and where they stood."""
    return emitter.ops("TopK", keys, emitter.numbers([count]), dtypes=(FLOAT, INT64), axis=-1, largest=0, sorted=1)


def _of(emitter: Emitter, state: fx.Node, sequence: fx.Node) -> Value:
    """One sequence's part of a state, [1,…]."""
    value = emitter.get(state)
    return value if shape_of(state)[0] == 1 else value.gather(emitter.get(sequence).cast(INT64))


def _replace(emitter: Emitter, state: fx.Node, value: Value, sequence: fx.Node) -> None:
    """Puts value [1,…] where ``_of`` found it."""
    if shape_of(state)[0] > 1:
        value = emitter.get(state).op("ScatterND", emitter.get(sequence).cast(INT64).unsqueeze(1), value)
    emitter.write(state, value)


def _plain(node: fx.Node, given: dict[str, Any]) -> None:
    if any(given.get(name) is not None for name in ("k_scale", "v_scale")):
        raise LoweringError(f"{node.name}: a quantized cache has no ONNX form in this version; leave out --kv-dtype")
