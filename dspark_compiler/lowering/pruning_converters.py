"""What the operators that free cache slots become on any target: its kernel templates with this node's sizes."""

from typing import Any

import tvm
from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.importer import Converter, EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import identifier, shape_of, tensor_args, written_args
from dspark_compiler.lowering.storage import storage_of
from dspark_compiler.schedules.attention_shape import Scoring
from dspark_compiler.schedules.slot_rows import RowShape
from dspark_compiler.schedules.slot_shape import CacheShape


def pruning_converters() -> dict[str, Converter]:
    """Operator name -> converter, as TVM's importer spells names."""
    return {
        "append_queries.default": append_queries,
        "commit_queries.default": commit_queries,
        "append_slot_scores.default": append_slot_scores,
        "commit_slot_scores.default": commit_slot_scores,
        "write_scratch.default": write_scratch,
        "read_state.default": read_state,
        "write_state.default": write_state,
        "read_keys.default": read_keys,
        "read_values.default": read_values,
        "attention_mass.default": attention_mass,
        "logit_moments.default": logit_moments,
        "select_slots.default": select_slots,
        "compact_slots.default": compact_slots,
    }


def append_queries(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.append_queries: writes ring."""
    given = bound_args(node)
    shape = _row_shape(given["ring"], given["q"])
    kernel = importer.template("append_queries", _row_name("append_queries", shape), shape)
    return _write(importer, kernel, node)


def commit_queries(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.commit_queries: writes ring."""
    given = bound_args(node)
    shape = _row_shape(given["ring"], given["scratch"])
    kernel = importer.template("commit_queries", _row_name("commit_queries", shape), shape)
    return _write(importer, kernel, node)


def append_slot_scores(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.append_slot_scores: writes slot_score."""
    given = bound_args(node)
    shape = _row_shape(given["slot_score"], given["score"])
    kernel = importer.template("append_slot_scores", _row_name("append_slot_scores", shape), shape)
    return _write(importer, kernel, node)


def commit_slot_scores(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.commit_slot_scores: writes slot_score."""
    given = bound_args(node)
    shape = _row_shape(given["slot_score"], given["scratch"])
    kernel = importer.template("commit_slot_scores", _row_name("commit_slot_scores", shape), shape)
    return _write(importer, kernel, node)


def write_scratch(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.write_scratch: writes scratch."""
    given = bound_args(node)
    shape = _row_shape(given["scratch"], given["rows"])
    kernel = importer.template("write_scratch", _row_name("write_scratch", shape), shape)
    return _write(importer, kernel, node)


def read_state(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.read_state(state, sequence)."""
    given = bound_args(node)
    state = _physical(importer, given["state"])
    kernel = importer.template("read_state", _state_name("read_state", state), state.shape, state.dtype)
    return importer.call(kernel, _tensors(importer, node), PhysicalTensor((1, *state.shape[1:]), state.dtype))


def write_state(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.write_state: writes state."""
    given = bound_args(node)
    state = _physical(importer, given["state"])
    kernel = importer.template("write_state", _state_name("write_state", state), state.shape, state.dtype)
    return _write(importer, kernel, node)


def read_keys(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.read_keys(k_cache, k_scale, sequence)."""
    given = bound_args(node)
    shape = cache_shape(given["k_cache"], given["k_scale"])
    kernel = importer.template("read_keys", cache_name("read_keys", shape), shape)
    return importer.call(kernel, _tensors(importer, node), PhysicalTensor(shape_of(node), "float32"))


def read_values(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.read_values(v_cache, v_scale, sequence)."""
    given = bound_args(node)
    shape = cache_shape(given["v_cache"], given["v_scale"])
    kernel = importer.template("read_values", cache_name("read_values", shape), shape)
    return importer.call(kernel, _tensors(importer, node), PhysicalTensor(shape_of(node), "float32"))


def attention_mass(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.attention_mass(ring, k_cache, …)."""
    given = bound_args(node)
    shape = cache_shape(given["k_cache"], given["k_scale"])
    _, heads, places, _ = shape_of(given["ring"])
    scoring = Scoring(given["scale"], given["window"], given["softcap"], given["sinks"] is not None)
    last, bounded = given["last"], given["pending"] is not None
    name = cache_name("attention_mass", shape) + f"_h{heads}_r{places}_{last}_{scoring}_{bounded}"
    kernel = importer.template(
        "attention_mass", identifier(name), shape, scoring, heads=heads, places=places, last=last, bounded=bounded
    )
    return importer.call(kernel, _tensors(importer, node), PhysicalTensor(shape_of(node), "float32"))


def logit_moments(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.logit_moments(queries, k_cache, k_scale, sequence, length, scale)."""
    given = bound_args(node)
    shape, scale = cache_shape(given["k_cache"], given["k_scale"]), given["scale"]
    _, heads, queries, _ = shape_of(given["queries"])
    name = identifier(cache_name("logit_moments", shape) + f"_h{heads}_r{queries}_{scale!r}")
    kernel = importer.template("logit_moments", name, shape, scale, heads=heads, queries=queries)
    return importer.call(kernel, _tensors(importer, node), PhysicalTensor(shape_of(node), "float32"))


def select_slots(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.select_slots(score, slot_position, sequence, length, free, need, first, last)."""
    given = bound_args(node)
    first, last = given["first"], given["last"]
    batch, kv_heads, slots = shape_of(given["slot_position"])
    shape = CacheShape(batch, kv_heads, slots, 0, 0)
    name = f"select_slots_{batch}x{kv_heads}x{slots}_{first}_{last}"
    kernel = importer.template("select_slots", name, shape, first, last)
    return importer.call(kernel, _tensors(importer, node), PhysicalTensor(shape_of(node), "int32"))


def compact_slots(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.compact_slots: writes k_cache, v_cache, slot_position and, where given, slot_score and the scales."""
    given = bound_args(node)
    shape = cache_shape(given["k_cache"], given["k_scale"], given["v_cache"])
    scored = given["slot_score"] is not None
    name = cache_name("compact_slots", shape) + ("_scored" if scored else "")
    kernel = importer.template("compact_slots", name, shape, scored=scored)
    return _write(importer, kernel, node)


def cache_shape(cache: fx.Node, scale: fx.Node | None, values: fx.Node | None = None) -> CacheShape:
    """Sizes of a cache of keys or of values, or of both."""
    batch, kv_heads, slots, dim = shape_of(cache)
    value_dim = dim if values is None else shape_of(values)[3]
    return CacheShape(batch, kv_heads, slots, dim, value_dim, storage_of(cache, scale))


def cache_name(kind: str, shape: CacheShape) -> str:
    """The name of a kernel on a cache of such a shape."""
    sizes = f"{shape.batch}x{shape.kv_heads}x{shape.slots}x{shape.head_dim}x{shape.value_dim}"
    return f"{kind}_{sizes}_{type(shape.storage).__name__.lower()}"


def _tensors(importer: EntryImporter, node: fx.Node) -> list[Any]:
    """The tensors among the arguments of an operator, in its order, which is the kernel's."""
    return [importer.env[value] for value in tensor_args(node).values()]


def _write(importer: EntryImporter, kernel: tvm.tirx.PrimFunc, node: fx.Node) -> Any:
    """Calls the kernel of an operator that returns nothing."""
    return importer.call_inplace(kernel, _tensors(importer, node), written_args(node))


def _physical(importer: EntryImporter, state: fx.Node) -> PhysicalTensor:
    return importer.plan.states[state.meta["ref"]]


def _row_shape(state: fx.Node, rows: fx.Node) -> RowShape:
    batch, heads, places, *_ = shape_of(state)
    calls, _, width, dim = shape_of(rows)
    return RowShape(batch, heads, places, calls, width, dim)


def _row_name(kind: str, shape: RowShape) -> str:
    sizes = (shape.batch, shape.heads, shape.places, shape.rows, shape.width, shape.dim)
    return f"{kind}_" + "x".join(map(str, sizes))


def _state_name(kind: str, state: PhysicalTensor) -> str:
    return f"{kind}_{'x'.join(map(str, state.shape))}_{state.dtype}"
