"""Finds every attention of a graph, in order, and puts ``dspark::Attention`` in its place."""

from dataclasses import dataclass

import onnx_ir as ir

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.attention.contributed import group_query_attention, multi_head_attention
from dspark_compiler.frontend.onnx.attention.decomposed import softmax_attention
from dspark_compiler.frontend.onnx.attention.found import Found, Probe
from dspark_compiler.frontend.onnx.attention.masks import MaskProver
from dspark_compiler.frontend.onnx.attention.operands import heads_of
from dspark_compiler.frontend.onnx.attention.standard import standard_attention
from dspark_compiler.frontend.onnx.graph import CONTRIB, OURS, drop_unused, insert
from dspark_compiler.frontend.onnx.inputs import Inputs
from dspark_compiler.frontend.onnx.operators.base import key_of, named

_FORMS = {
    ("", "Attention"): standard_attention,
    (CONTRIB, "GroupQueryAttention"): group_query_attention,
    (CONTRIB, "MultiHeadAttention"): multi_head_attention,
    ("", "Softmax"): softmax_attention,
}


@dataclass(frozen=True)
class Attentions:
    """How many layers attend, and for how many tokens their masks were proved (None: for any number)."""

    layers: int
    length: int | None


def canonicalize_attention(graph: ir.Graph, inputs: Inputs, positions: ir.Value) -> Attentions:
    """Rewrites ``graph``, whose only output are the logits; ``positions`` [b,S] become those of its tokens.

    Afterwards the graph reads no past and no mask, as far as these only served attention.

    Raises:
        UnsupportedModelError: an attention that cannot be put as the seam's, by node and reason.
    """
    probe = Probe(graph, inputs, positions)
    prover = MaskProver(inputs, positions)
    layers, lengths = 0, []
    for node in list(graph):
        form = _FORMS.get(key_of(node))
        found = None if form is None or node.graph is None else form(node, probe)
        if found is None:
            continue
        proved = prover.prove(found)
        if proved.length is not None:
            lengths.append(proved.length)
        _replace(found, probe, layers, proved.window)
        layers += 1
    drop_unused(graph)
    return Attentions(layers, min(lengths, default=None))


def _replace(found: Found, probe: Probe, layer: int, window: int) -> None:
    q = heads_of(probe, found.q, repeated=False)
    k = heads_of(probe, found.k, swapped=found.swapped)
    v = heads_of(probe, found.v, scaled=False)
    if q is None or k is None or v is None:
        raise UnsupportedModelError(
            f"{named(found.node)}: an operand of this attention is not laid out as [batch, heads, tokens, size]"
        )
    out = insert(
        found.node,
        "Attention",
        [q.value, k.value, v.value, *([] if found.sinks is None else [found.sinks])],
        {
            "layer": layer,
            "scale": found.scale * q.factor * k.factor,
            "window": window,
            "softcap": found.softcap,
        },
        domain=OURS,
        name=found.node.name,
    )
    found.output.replace_all_uses_with(out, replace_graph_outputs=True)
