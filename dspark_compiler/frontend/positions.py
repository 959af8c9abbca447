"""How a model takes positions: looked up in a table, or computed."""

import torch
from torch import fx

from dspark_compiler.graph.program import Program


def looks_up_positions(program: Program) -> bool:
    """Whether positions index an embedding, which has rows for so many and no more; rope has no such end."""
    entry = next(iter(program.entries.values()))
    positions = entry.placeholder("positions")
    reached: set[fx.Node] = set() if positions is None else {positions}
    for node in entry.graph.graph.nodes:
        if node.target is torch.ops.aten.embedding.default and node.args[1] in reached:
            return True
        if reached.intersection(node.all_input_nodes):
            reached.add(node)
    return False
