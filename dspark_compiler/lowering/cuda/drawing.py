"""Distributions from which a token a sequence is drawn at once: both are one launch."""

from typing import Any

import numpy as np
import torch
from torch import fx
from tvm import relax

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering import draft_converters
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import args_of, identifier, shape_of

_DRAW = torch.ops.dspark.draw.default
_KNOBS = ("temperature", "top_k", "top_p", "min_p")


def token_probs(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.token_probs(logits, temperature, top_k, top_p, min_p); draws, too, if one draw follows."""
    found = _drawn(node)
    if found is None:
        return draft_converters.token_probs(node, importer)
    drawing, uniform, column = found
    (batch, _, vocab), numbers = shape_of(node), shape_of(uniform)[1]
    name = identifier(f"drawn_probs_{batch}x{vocab}_{numbers}")
    kernel = importer.template("drawn_probs", name, batch, vocab, numbers)
    given = bound_args(node)
    args = [importer.env[given[name]] for name in ("logits", *_KNOBS)]
    args += [importer.env[uniform], relax.const(np.array([column], np.int32))]
    outs = [PhysicalTensor(shape_of(node), "float32"), PhysicalTensor((batch,), "int64")]
    probs, token = importer.call_many(kernel, args, outs)
    importer.prepared[drawing] = (token,)
    return probs


def draw(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.draw(probs, uniform)."""
    made = importer.prepared.get(node)
    return draft_converters.draw(node, importer) if made is None else made[0]


def _drawn(probs: fx.Node) -> tuple[fx.Node, fx.Node, int] | None:
    """The draw from a distribution a sequence, and the numbers [B,N] and column it draws by."""
    batch, rows, vocab = shape_of(probs)
    flat = [user for user in probs.users if user.target is torch.ops.aten.reshape.default]
    draws = [user for node in flat for user in node.users if user.target is _DRAW]
    if rows != 1 or len(draws) != 1 or shape_of(args_of(draws[0])[0]) != (batch, vocab):
        return None
    number = args_of(draws[0])[1]
    if number.target is not torch.ops.aten.select.int:
        return None
    uniform, dim, column = args_of(number)
    return (draws[0], uniform, column) if uniform.op == "placeholder" and dim == 1 and column >= 0 else None
