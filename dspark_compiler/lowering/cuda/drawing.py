"""Distributions from which a token a sequence is drawn at once: both are one launch."""

from typing import Any

import numpy as np
from torch import fx
from tvm import relax

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering import draft_converters
from dspark_compiler.lowering.drawn import Drawn
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import identifier, shape_of

_KNOBS = ("temperature", "top_k", "top_p", "min_p")


def token_probs(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.token_probs(logits, temperature, top_k, top_p, min_p); draws, too, if one draw follows."""
    found = Drawn.of(node)
    if found is None:
        return draft_converters.token_probs(node, importer)
    (batch, _, vocab), numbers = shape_of(node), shape_of(found.uniform)[1]
    name = identifier(f"drawn_probs_{batch}x{vocab}_{numbers}")
    kernel = importer.template("drawn_probs", name, batch, vocab, numbers)
    given = bound_args(node)
    args = [importer.env[given[name]] for name in ("logits", *_KNOBS)]
    args += [importer.env[found.uniform], relax.const(np.array([found.column], np.int32))]
    outs = [PhysicalTensor(shape_of(node), "float32"), PhysicalTensor((batch,), "int64")]
    probs, token = importer.call_many(kernel, args, outs)
    importer.prepared[found.draw] = (token,)
    return probs


def draw(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.draw(probs, uniform)."""
    made = importer.prepared.get(node)
    return draft_converters.draw(node, importer) if made is None else made[0]
