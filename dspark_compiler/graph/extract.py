"""A part of an entry point's graph as a function of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from dspark_compiler.graph.program import Role


@dataclass(frozen=True)
class Extract:
    """What a node computes from chosen nodes and params; ``refs`` names the params."""

    module: fx.GraphModule
    refs: tuple[str, ...]

    def __call__(self, given: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """The node's value for another value of the chosen node, of whatever shape the operators take."""
        result: Tensor = fx.Interpreter(self.module).run(given, *(params[ref] for ref in self.refs))
        return result


def extract(result: fx.Node, given: fx.Node) -> Extract | str:
    """How ``result`` comes from ``given`` and params; a reason where it depends on anything else."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {given: graph.placeholder("given")}
    needed = _ancestors(result, given)
    params = [node for node in needed if node.op == "placeholder"]
    for node in params:
        if node.meta["role"] is not Role.PARAM:
            return f"{result.name} depends on {node.meta['ref']}, too"
        copies[node] = graph.placeholder(node.name)
    for node in needed:
        if node.op == "call_function":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[result])
    return Extract(fx.GraphModule(nn.Module(), graph), tuple(node.meta["ref"] for node in params))


def _ancestors(result: fx.Node, given: fx.Node) -> list[fx.Node]:
    """What ``result`` is made of, itself included, without ``given`` and what lies behind that; in graph order."""
    found = {result} - {given}
    stack = list(found)
    while stack:
        for operand in stack.pop().all_input_nodes:
            if operand is not given and operand not in found:
                found.add(operand)
                stack.append(operand)
    return [node for node in result.graph.nodes if node in found]
