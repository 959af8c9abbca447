"""GroupQueryAttention and MultiHeadAttention of ONNX Runtime (com.microsoft).

b rows, S tokens, H query heads, G key/value heads, D head size.
"""

import numpy as np
import onnx_ir as ir

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.attention.found import Found, Mask, Probe
from dspark_compiler.frontend.onnx.attention.standard import merged_heads, split_heads
from dspark_compiler.frontend.onnx.evaluate import evaluate
from dspark_compiler.frontend.onnx.graph import CONTRIB, attribute, constant, given, insert
from dspark_compiler.frontend.onnx.operators.base import named

_PROBED = (3, 5)  # new tokens and past ones, to see what lengths say of them


def group_query_attention(node: ir.Node, probe: Probe) -> Found:
    """Inputs query, key, value, past key, past value, seqlens_k, total length, cos, sin, positions, bias, sinks.

    Query [b,S,H*D], key and value [b,S,G*D], or all in one [b,S,(H+2G)*D]; causal.

    Raises:
        UnsupportedModelError: a cache of other types, lengths that say some tokens are padding, or scores given out.
    """
    _refuse_outputs(node)
    for name, usual in (("k_quant_type", "NONE"), ("v_quant_type", "NONE"), ("qk_output", 0)):
        if attribute(node, name, usual) not in (usual, ""):
            raise UnsupportedModelError(
                f"{named(node)}: {name} is set; export it with a float cache and without scores"
            )
    _check_lengths(node, probe)
    heads, groups = attribute(node, "num_heads", 0), attribute(node, "kv_num_heads", 0)
    q, k, v = _pieces(node, probe, heads, groups)
    cos, sin, positions, bias, sinks = (given(node, place) for place in range(7, 12))
    if attribute(node, "do_rotary", 0):
        at = probe.positions if positions is None else positions
        q, k = (_rotated(node, x, at, cos, sin, count) for x, count in ((q, heads), (k, groups)))
    if sinks is None and attribute(node, "smooth_softmax", 0) == 1:
        sinks = constant(probe.graph, np.zeros(heads, np.float32), "smooth_softmax")
    q, k, v = (split_heads(node, probe, x, count) for x, count in ((q, heads), (k, groups), (v, groups)))
    window = attribute(node, "local_window_size", -1)
    return Found(
        node=node,
        q=q,
        k=k,
        v=v,
        output=merged_heads(node, probe, node.outputs[0]),
        scale=float(attribute(node, "scale", 0.0)) or probe.shape(q)[-1] ** -0.5,
        softcap=float(attribute(node, "softcap", 0.0)),
        sinks=sinks,
        masks=[] if bias is None else [Mask(bias, "add")],
        causal=True,
        window=max(window, 0),
    )


def multi_head_attention(node: ir.Node, probe: Probe) -> Found:
    """Inputs query, key, value, bias of the projections, padding mask, bias of the scores, past key, past value.

    Query, key and value [b,S,H*D]; unidirectional, or masked so.

    Raises:
        UnsupportedModelError: packed operands, another sequence's keys, or scores given out.
    """
    _refuse_outputs(node)
    q, k, v, added, padding, bias = (given(node, place) for place in range(6))
    if q is None or k is None or v is None or {len(probe.shape(x)) for x in (q, k, v)} != {3}:
        raise UnsupportedModelError(
            f"{named(node)}: only query, key and value as [batch, tokens, heads * size] can be read"
        )
    heads = attribute(node, "num_heads", 0)
    if added is not None:
        ends = np.cumsum([0, *(probe.shape(x)[-1] for x in (q, k, v))])
        q, k, v = (
            insert(node, "Add", [x, _cut(node, probe, added, int(ends[i]), int(ends[i + 1]), 0)])
            for i, x in enumerate((q, k, v))
        )
    q, k, v = (split_heads(node, probe, x, heads) for x in (q, k, v))
    masks = [] if bias is None else [Mask(bias, "add")]
    if padding is not None:
        if len(probe.shape(padding)) < 2:
            raise UnsupportedModelError(f"{named(node)}: key_padding_mask of lengths; export it with a mask of tokens")
        masks.append(Mask(padding, "keep"))
    return Found(
        node=node,
        q=q,
        k=k,
        v=v,
        output=merged_heads(node, probe, node.outputs[0]),
        scale=float(attribute(node, "scale", 0.0)) or probe.shape(q)[-1] ** -0.5,
        masks=masks,
        causal=bool(attribute(node, "unidirectional", 0)),
    )


def _refuse_outputs(node: ir.Node) -> None:
    if any(output.uses() for output in node.outputs[1:]):
        raise UnsupportedModelError(f"{named(node)}: its keys, values or scores are read; only its first output can be")


def _check_lengths(node: ir.Node, probe: Probe) -> None:
    """The lengths given must be those of texts without padding."""
    new, past = _PROBED if probe.inputs.past else (_PROBED[0], 0)
    feeds = probe.inputs.feeds(1, new, past)
    for place, expected in ((5, past + new - 1), (6, past + new)):
        value = given(node, place)
        if value is None:
            continue
        found = evaluate(feeds, [value])[value]
        if found.is_meta or not bool((found == expected).all()):
            raise UnsupportedModelError(
                f"{named(node)}: {value.name!r} is not the length of {past + new} tokens without padding"
            )


def _pieces(node: ir.Node, probe: Probe, heads: int, groups: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    q, k, v = (given(node, place) for place in range(3))
    assert q is not None
    if k is not None and v is not None:
        return q, k, v
    size = probe.shape(q)[-1] // (heads + 2 * groups)
    ends = np.cumsum([0, heads * size, groups * size, groups * size])
    first, second, third = (_cut(node, probe, q, int(ends[i]), int(ends[i + 1]), -1) for i in range(3))
    return first, second, third


def _cut(node: ir.Node, probe: Probe, value: ir.Value, start: int, end: int, axis: int) -> ir.Value:
    bounds = [constant(probe.graph, [number], "cut") for number in (start, end, axis)]
    return insert(node, "Slice", [value, *bounds])


def _rotated(
    node: ir.Node, x: ir.Value, positions: ir.Value, cos: ir.Value | None, sin: ir.Value | None, heads: int
) -> ir.Value:
    if cos is None or sin is None:
        raise UnsupportedModelError(f"{named(node)}: do_rotary without cos_cache and sin_cache")
    assert cos.shape is not None
    size = 2 * int(cos.shape[-1])  # type: ignore[arg-type]
    options = {
        "num_heads": heads,
        "interleaved": attribute(node, "rotary_interleaved", 0),
        "rotary_embedding_dim": size,
    }
    return insert(node, "RotaryEmbedding", [x, positions, cos, sin], options, domain=CONTRIB)
