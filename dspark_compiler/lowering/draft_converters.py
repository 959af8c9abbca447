"""What the operators of speculative rounds become on any target: its kernel templates with this node's sizes."""

import dataclasses
from typing import Any

from torch import fx
from tvm import relax

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.importer import Converter, EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import identifier, shape_of, tensor_args, written_args
from dspark_compiler.schedules.block_attention import BlockShape
from dspark_compiler.schedules.slot_rows import RowShape


def draft_converters() -> dict[str, Converter]:
    """Operator name -> converter, as TVM's importer spells names."""
    return {
        "write_ring.default": write_ring,
        "read_ring.default": read_ring,
        "block_attention.default": block_attention,
        "token_probs.default": token_probs,
        "draw.default": draw,
        "accept.default": accept,
    }


def write_ring(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.write_ring: writes ring."""
    given = bound_args(node)
    rows, heads, width, dim = shape_of(given["rows"])
    batch, _, places, _ = shape_of(given["ring"])
    optional = {name: given[name] is not None for name in ("sequence", "count")}
    name = _name("write_ring", batch, heads, places, rows, width, dim, *(n for n, there in optional.items() if there))
    shape = RowShape(batch, heads, places, rows, width, dim)
    kernel = importer.template("write_ring", name, shape, **optional)
    return importer.call_inplace(kernel, _tensors(importer, node), written_args(node))


def read_ring(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.read_ring(ring, length, sequence)."""
    given = bound_args(node)
    batch, heads, places, dim = shape_of(given["ring"])
    (rows,), sequence = shape_of(given["length"]), given["sequence"] is not None
    name = _name("read_ring", batch, heads, places, rows, dim, *(["sequence"] if sequence else []))
    shape = RowShape(batch, heads, places, rows, 1, dim)
    kernel = importer.template("read_ring", name, shape, sequence=sequence)
    return importer.call(kernel, _tensors(importer, node), _output(node))


def block_attention(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.block_attention(q, k, v, k_ring, v_ring, length, spare, scale)."""
    shape, scale = block_shape(node), bound_args(node)["scale"]
    kernel = importer.template("block_attention", block_name("block_attention", shape, scale), shape, scale)
    return importer.call(kernel, _tensors(importer, node), _output(node))


def block_shape(node: fx.Node) -> BlockShape:
    """Sizes of a block_attention."""
    given = bound_args(node)
    batch, heads, width, dim = shape_of(given["q"])
    _, kv_heads, fresh, value_dim = shape_of(given["v"])
    return BlockShape(
        batch, heads, kv_heads, width, fresh, dim, value_dim, shape_of(given["k_ring"])[2], given["spare"]
    )


def block_name(kind: str, shape: BlockShape, scale: float) -> str:
    """What a kernel of that kind is called."""
    return _name(kind, *dataclasses.astuple(shape), repr(scale))


def token_probs(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.token_probs(logits, temperature, top_k, top_p, min_p)."""
    sizes = batch, rows, vocab = shape_of(node)
    kernel = importer.template("token_probs", _name("token_probs", *sizes), batch, rows, vocab)
    return importer.call(kernel, _tensors(importer, node), _output(node))


def draw(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.draw(probs, uniform)."""
    batch, vocab = shape_of(bound_args(node)["probs"])
    kernel = importer.template("draw", _name("draw", batch, vocab), batch, vocab)
    return importer.call(kernel, _tensors(importer, node), PhysicalTensor((batch,), "int64"))


def accept(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.accept(tokens, probs, count, uniform, position, length, draft_probs): a tuple of four."""
    given = bound_args(node)
    sizes = batch, width, vocab = shape_of(given["probs"])
    drafts = 0 if given["draft_probs"] is None else shape_of(given["draft_probs"])[1]
    kernel = importer.template("accept", _name("accept", *sizes, drafts), batch, width, vocab, drafts=drafts)
    outs = [PhysicalTensor((batch,), dtype) for dtype in ("int32", "int64", "int64", "int32")]
    return relax.Tuple(importer.call_many(kernel, _tensors(importer, node), outs))


def _tensors(importer: EntryImporter, node: fx.Node) -> list[Any]:
    """The tensors among the arguments of an operator, in its order, which is the kernel's."""
    return [importer.env[value] for value in tensor_args(node).values()]


def _output(node: fx.Node) -> PhysicalTensor:
    return PhysicalTensor(shape_of(node), "float32")


def _name(kind: str, *parts: int | str) -> str:
    return identifier(f"{kind}_" + "x".join(map(str, parts)))
