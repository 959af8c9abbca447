"""Merged decoders: one graph for texts with a past and one for those without, of which the former does for both."""

import onnx_ir as ir
from onnx_ir.passes import common as passes

from dspark_compiler.frontend.onnx.graph import constant_tensor

USE_CACHE = "use_cache_branch"  # the input by which optimum's merged decoders choose; true where there is a past

_SAME = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze")


def take_branches(model: ir.Model) -> None:
    """Replaces each If by the branch for a past; an If by a constant by that branch; others stay."""
    graph = model.graph
    while (found := next(((node, taken) for node in graph if (taken := _taken(node)) is not None), None)) is not None:
        passes.LiftSubgraphInitializersToMainGraphPass()(model)
        _inline(graph, *found)


def _taken(node: ir.Node) -> ir.Graph | None:
    """The branch of an If that runs, if that is known."""
    if node.op_type != "If" or node.domain:
        return None
    value, negated = node.inputs[0], False
    while value is not None and (step := value.producer()) is not None and step.op_type in (*_SAME, "Not"):
        negated ^= step.op_type == "Not"
        value = step.inputs[0]
    tensor = None if value is None else constant_tensor(value)
    if tensor is not None:
        chosen = bool(tensor.numpy().reshape(-1)[0])
    elif value is not None and value.name == USE_CACHE:
        chosen = True
    else:
        return None
    branch: ir.Graph = node.attributes["then_branch" if chosen != negated else "else_branch"].value
    return branch


def _inline(graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    results = list(branch.outputs)
    branch.outputs.clear()
    nodes = list(branch)
    branch.remove(nodes)
    graph.insert_before(node, nodes)
    for output, result in zip(node.outputs, results, strict=True):
        name = output.name
        ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
        output.name = f"{name}.before"
        result.name = name
    for attribute in node.attributes.values():
        _forget(attribute.value)
    graph.remove(node, safe=True)


def _forget(branch: ir.Graph) -> None:
    """What the other branch read is read no more."""
    for node in list(branch):
        for place in range(len(node.inputs)):
            node.replace_input_with(place, None)
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH:
                _forget(attribute.value)
