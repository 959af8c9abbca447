"""Operators of sampling, whose kernels put parts of long rows together through workspaces."""

from collections.abc import Sequence
from typing import Any

from torch import fx
from tvm import relax

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import identifier, shape_of, tensor_args
from dspark_compiler.lowering.simt.attention import Exchange
from dspark_compiler.schedules.simt import accept as acceptance
from dspark_compiler.schedules.simt import draw as drawing
from dspark_compiler.schedules.simt import token_probs as distributions
from dspark_compiler.schedules.simt.stream_linear import MOST_ROWS


def token_probs(node: fx.Node, importer: EntryImporter, *, exchange: Exchange) -> Any:
    """dspark.token_probs(logits, temperature, top_k, top_p, min_p)."""
    sizes = batch, rows, vocab = shape_of(node)
    # What linears of few rows hand on, as to attention.
    awaits = exchange is Exchange.BETWEEN_LAUNCHES and batch * rows <= MOST_ROWS
    kernel, workspaces = distributions.token_probs(_name("token_probs", sizes), batch, rows, vocab, awaits=awaits)
    outs = [PhysicalTensor(sizes, "float32"), *(PhysicalTensor(arg.shape, arg.dtype) for arg in workspaces)]
    return importer.call_many(kernel, _tensors(importer, node), outs)[0]


def draw(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.draw(probs, uniform)."""
    sizes = batch, vocab = shape_of(bound_args(node)["probs"])
    kernel, workspace = drawing.draw(_name("draw", sizes), batch, vocab)
    outs = [PhysicalTensor((batch,), "int64"), PhysicalTensor(workspace, "int64")]
    return importer.call_many(kernel, _tensors(importer, node), outs)[0]


def accept(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.accept(tokens, probs, count, uniform, position, length, draft_probs): a tuple of four."""
    given = bound_args(node)
    sizes = batch, width, vocab = shape_of(given["probs"])
    drafts = 0 if given["draft_probs"] is None else shape_of(given["draft_probs"])[1]
    kernel, workspace = acceptance.accept(_name("accept", (*sizes, drafts)), batch, width, vocab, drafts=drafts)
    outs = [PhysicalTensor((batch,), dtype) for dtype in ("int32", "int64", "int64", "int32")]
    results = importer.call_many(kernel, _tensors(importer, node), [*outs, PhysicalTensor(workspace, "int64")])
    return relax.Tuple(results[: len(outs)])


def _tensors(importer: EntryImporter, node: fx.Node) -> list[Any]:
    """The tensors among the arguments of an operator, in its order, which is the kernel's."""
    return [importer.env[value] for value in tensor_args(node).values()]


def _name(kind: str, sizes: Sequence[int]) -> str:
    return identifier(f"{kind}_" + "x".join(map(str, sizes)))
