"""Attention of the ONNX standard, opset 23 and on."""

import onnx_ir as ir

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.attention.found import Found, Mask, Probe
from dspark_compiler.frontend.onnx.graph import attribute, constant, given, insert
from dspark_compiler.frontend.onnx.operators.base import named


def standard_attention(node: ir.Node, probe: Probe) -> Found:
    """Inputs Q, K, V, mask, past key, past value; Q [b,H,S,D] or [b,S,H*D].

    Raises:
        UnsupportedModelError: it gives out its scores, or takes lengths of padded keys.
    """
    if any(output.uses() for output in node.outputs[3:]):
        raise UnsupportedModelError(f"{named(node)}: its scores are read; only its first output can be")
    if given(node, 6) is not None:
        raise UnsupportedModelError(f"{named(node)}: nonpad_kv_seqlen is given; export it with past keys and values")
    q, k, v, mask = (given(node, place) for place in range(4))
    assert q is not None
    assert k is not None
    assert v is not None
    output = node.outputs[0]
    if len(probe.shape(q)) == 3:
        heads, groups = attribute(node, "q_num_heads", 0), attribute(node, "kv_num_heads", 0)
        q, k, v = (
            split_heads(node, probe, q, heads),
            split_heads(node, probe, k, groups),
            split_heads(node, probe, v, groups),
        )
        output = merged_heads(node, probe, output)
    scale = attribute(node, "scale", None)
    return Found(
        node=node,
        q=q,
        k=k,
        v=v,
        output=output,
        scale=probe.shape(q)[-1] ** -0.5 if scale is None else float(scale),
        softcap=float(attribute(node, "softcap", 0.0)),
        masks=[] if mask is None else [Mask(mask, "keep" if mask.dtype == ir.DataType.BOOL else "add")],
        causal=bool(attribute(node, "is_causal", 0)),
    )


def split_heads(node: ir.Node, probe: Probe, value: ir.Value, heads: int) -> ir.Value:
    """[b,S,H*D] -> [b,H,S,D]."""
    size = probe.shape(value)[-1] // heads
    shape = constant(probe.graph, [0, 0, heads, size], "heads_shape")
    return insert(node, "Transpose", [insert(node, "Reshape", [value, shape])], {"perm": [0, 2, 1, 3]})


def merged_heads(node: ir.Node, probe: Probe, output: ir.Value) -> ir.Value:
    """What reads ``output`` [b,S,H*D] reads a new value [b,H,S,D] behind a transpose; that value is for replacing."""
    heads = ir.Value(name=f"{output.name}_heads", type=output.type)
    rows = ir.node("Transpose", [heads], {"perm": [0, 2, 1, 3]})
    merged = ir.node("Reshape", [rows.outputs[0], constant(probe.graph, [0, 0, -1], "merged_shape")])
    assert node.graph is not None
    node.graph.insert_after(node, [rows, merged])
    output.replace_all_uses_with(merged.outputs[0], replace_graph_outputs=True)
    return heads
