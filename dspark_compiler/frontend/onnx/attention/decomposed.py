"""Attention written out: MatMul, scale, cap, mask, sinks, Softmax, MatMul.

The search starts at a Softmax and goes both ways. A Softmax that is not between two products of values that depend on
tokens (a router's) is none.
"""

from dataclasses import dataclass, field

import onnx_ir as ir

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.attention.found import Found, Mask, Probe
from dspark_compiler.frontend.onnx.attention.masks import HIDDEN
from dspark_compiler.frontend.onnx.attention.operands import vector_of
from dspark_compiler.frontend.onnx.graph import attribute, constant, insert, is_node, scalar
from dspark_compiler.frontend.onnx.operators.base import named

_SAME = ("Cast", "Identity", "Reshape", "Dropout", "Unsqueeze", "Squeeze")


@dataclass
class _Scores:
    """What was met between a Softmax and the product it begins with."""

    scale: float = 1.0
    softcap: float = 0.0
    sinks: ir.Value | None = None
    masks: list[Mask] = field(default_factory=list)
    product: ir.Node | None = None


def softmax_attention(node: ir.Node, probe: Probe) -> Found | None:
    """The attention around a Softmax, None if there is none.

    Raises:
        UnsupportedModelError: one with a step that cannot be put as the seam's; names that step's node.
    """
    source = node.inputs[0]
    assert source is not None
    rank = len(probe.shape(source))
    if rank not in (3, 4) or attribute(node, "axis", -1) % rank != rank - 1:
        return None
    last = _behind(node.outputs[0], probe)
    if last is None or not _depends(probe, last.inputs[1]):
        return None
    scores = _scores(source, probe)
    if scores is None or scores.product is None:
        return None
    q, k = scores.product.inputs
    v = last.inputs[1]
    assert q is not None
    assert k is not None
    assert v is not None
    heads = probe.shape(q)[1] if len(probe.shape(q)) == 4 else probe.shape(q)[0] // probe.batch
    sinks = None if scores.sinks is None else vector_of(probe, scores.sinks, heads)
    if scores.sinks is not None and sinks is None:
        raise UnsupportedModelError(f"{named(node)}: what is put beside its scores is not one number a head")
    return Found(
        node=last,
        q=q,
        k=k,
        v=v,
        output=_output(last, probe, q),
        scale=scores.scale,
        swapped=_swapped(scores.product),
        softcap=scores.softcap,
        sinks=sinks,
        masks=scores.masks,
    )


def _swapped(product: ir.Node) -> bool:
    """Whether the product's right operand is a transposed one as it stands."""
    return not (product.op_type == "FusedMatMul" and attribute(product, "transB", 0))


def _output(last: ir.Node, probe: Probe, q: ir.Value) -> ir.Value:
    """The product's output as [b,H,S,Dv], to be replaced."""
    output = last.outputs[0]
    if len(probe.shape(output)) == 4:
        return output
    size = probe.shape(output)[-1]
    lead = insert(last, "Shape", [q], {"start": 0, "end": 2})
    shape = insert(last, "Concat", [lead, constant(probe.graph, [size], "value_size")], {"axis": 0})
    heads = ir.Value(name=f"{output.name}_heads", type=output.type)
    flat = ir.node("Reshape", [heads, shape])
    assert last.graph is not None
    last.graph.insert_after(last, flat)
    output.replace_all_uses_with(flat.outputs[0], replace_graph_outputs=True)
    return heads


def _behind(value: ir.Value, probe: Probe) -> ir.Node | None:
    """The product that takes the probabilities, behind casts, guards against no number, and the cut of the sinks."""
    while True:
        users = {node for node, _ in value.uses() if node.op_type != "IsNaN"}
        if len(users) != 1:
            return None
        (node,) = users
        if node.op_type in ("MatMul", "FusedMatMul"):
            return node if node.inputs[0] is value else None
        guard = node.op_type == "Where" and is_node(node.inputs[0], "IsNaN") and node.inputs[2] is value
        if not (guard or node.op_type in (*_SAME, "Slice")) or (node.inputs[0] is not value and not guard):
            return None
        value = node.outputs[0]


def _scores(value: ir.Value, probe: Probe) -> _Scores | None:
    """Goes from the Softmax's input to the product; None where it is none of two values that depend on tokens."""
    found = _Scores()
    while True:
        node = value.producer()
        if node is None:
            return None
        if node.op_type in ("MatMul", "FusedMatMul"):
            if not all(_depends(probe, operand) for operand in node.inputs):
                return None
            found.product = node
            found.scale *= float(attribute(node, "alpha", 1.0)) if node.op_type == "FusedMatMul" else 1.0
            return found
        onward = _step(node, found, probe)
        if onward is None:
            if found.masks or found.sinks is not None:
                raise UnsupportedModelError(f"{named(node)}: a step of attention's scores that cannot be compiled")
            return None
        value = onward


def _step(node: ir.Node, found: _Scores, probe: Probe) -> ir.Value | None:
    """What the scores were before this step, noted in ``found``; None for a step that is unknown."""
    if node.op_type in _SAME:
        return node.inputs[0]
    if node.op_type == "Sub" and is_node(node.inputs[1], "ReduceMax"):
        return node.inputs[0]  # changes nothing: Softmax does it again
    if node.op_type == "Concat" and len(node.inputs) == 2 and found.sinks is None:
        found.sinks = node.inputs[1]
        return node.inputs[0]
    if node.op_type == "Max":
        left, right = node.inputs
        return left if (bound := scalar(right)) is not None and bound <= HIDDEN else None
    if node.op_type in ("Mul", "Div"):
        return _scaled(node, found, probe)
    if node.op_type == "Add":
        return _added(node, found, probe)
    if node.op_type == "Where":
        return _chosen(node, found, probe)
    return None


def _scaled(node: ir.Node, found: _Scores, probe: Probe) -> ir.Value | None:
    value, number = _number(node, probe)
    if value is None or number is None:
        return None
    if not is_node(value, "Tanh"):
        found.scale *= number
        return value
    # softcap * tanh(x / softcap); what comes before is divided by it, or multiplied with its inverse.
    tanh = value.producer()
    assert tanh is not None
    if found.scale != 1.0 or found.softcap:
        return None
    found.softcap = number
    found.scale = number
    return tanh.inputs[0]


def _number(node: ir.Node, probe: Probe) -> tuple[ir.Value | None, float | None]:
    """X and c of x * c or x / c, the latter as its inverse."""
    left, right = node.inputs
    if (number := probe.number(right)) is not None:
        return left, number if node.op_type == "Mul" else 1 / number
    if node.op_type == "Mul" and (number := probe.number(left)) is not None:
        return right, number
    return None, None


def _added(node: ir.Node, found: _Scores, probe: Probe) -> ir.Value | None:
    left, right = node.inputs
    for scores, mask in ((left, right), (right, left)):
        if mask is not None and not _depends(probe, mask):
            if found.softcap:
                raise UnsupportedModelError(f"{named(node)}: a mask that is added before scores are capped")
            found.masks.append(Mask(mask, "add"))
            return scores
    return None


def _chosen(node: ir.Node, found: _Scores, probe: Probe) -> ir.Value | None:
    condition, kept, other = node.inputs
    if condition is None or kept is None or other is None or _depends(probe, condition):
        return None
    if found.softcap:
        raise UnsupportedModelError(f"{named(node)}: a mask that is put in before scores are capped")
    for scores, fill, kind in ((kept, other, "keep"), (other, kept, "hide")):
        if not _depends(probe, fill) and bool((probe[fill] <= HIDDEN).all()):
            found.masks.append(Mask(condition, kind))  # type: ignore[arg-type]
            return scores
    return None


def _depends(probe: Probe, value: ir.Value | None) -> bool:
    """Whether a value depends on the tokens (or on a weight)."""
    return value is not None and probe[value].is_meta
