"""What linears read while a program reads a text: rows of their inputs, sampled."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role
from dspark_compiler.graph.values import spec_of

_ROWS = 128  # kept of each input: a layer's products over them tell good scales from bad


def linear_inputs(program: Program, tokens: Sequence[int]) -> dict[str, Tensor]:
    """By name of the weight, rows [R,K] of what linears read while ``program`` prefills ``tokens``; evenly spread.

    The widest prefill reads them in whole chunks; what is left over is not read, nor what finds no room in the cache.
    """
    entries = [entry for entry in program.entries.values() if entry.kind is EntryKind.PREFILL]
    entry = max(entries, key=lambda entry: entry.width)
    room = min((spec.shape[2] for name, spec in program.states.items() if name.startswith("k_cache.")), default=0)
    chunks = max(1, min(len(tokens), room) // entry.width)
    watcher = _Watcher(entry, -(-_ROWS // chunks))
    states = {ref: torch.zeros(spec.shape, dtype=spec.dtype) for ref, spec in program.states.items()}
    with torch.inference_mode():
        for chunk in range(chunks):
            start = chunk * entry.width
            watcher.run(*_arguments(program, entry, states, list(tokens[start : start + entry.width]), start))
    return {ref: torch.cat(rows) for ref, rows in watcher.seen.items()}


def _arguments(
    program: Program, entry: EntryPoint, states: dict[str, Tensor], tokens: list[int], start: int
) -> list[Tensor]:
    """Values of the placeholders of a prefill of ``tokens`` behind ``start`` others."""
    count = len(tokens)
    padded = torch.tensor([tokens + [0] * (entry.width - count)])
    inputs = {
        "input_ids": padded,
        "positions": torch.arange(start, start + entry.width)[None],
        "sequence": torch.zeros(1, dtype=torch.int32),
        "length": torch.tensor([start], dtype=torch.int32),
        "count": torch.tensor([count], dtype=torch.int32),
    }
    values = {Role.PARAM: program.params, Role.STATE: states}
    arguments = []
    for node in entry.graph.graph.nodes:
        if node.op != "placeholder":
            break
        role, ref = node.meta["role"], node.meta["ref"]
        if role is not Role.INPUT:
            arguments.append(values[role][ref])
        else:
            # What draws and slots are steered by does not reach a linear.
            spec = spec_of(node)
            arguments.append(inputs[ref] if ref in inputs else torch.zeros(spec.shape, dtype=spec.dtype))
    return arguments


class _Watcher(fx.Interpreter):
    """Runs an entry point and keeps rows of what each linear over a param reads."""

    def __init__(self, entry: EntryPoint, rows: int) -> None:
        super().__init__(entry.graph)
        self._rows = rows
        self.seen: dict[str, list[Tensor]] = {}

    def run_node(self, n: fx.Node) -> object:
        """As the interpreter does, having kept the rows."""
        if n.target is torch.ops.aten.linear.default:
            x, weight = n.args[:2]
            assert isinstance(x, fx.Node)
            assert isinstance(weight, fx.Node)
            if weight.meta.get("role") is Role.PARAM:
                rows = self.env[x].flatten(0, -2)
                picked = torch.linspace(0, len(rows) - 1, min(self._rows, len(rows))).long()
                self.seen.setdefault(weight.meta["ref"], []).append(rows[picked].clone())
        return super().run_node(n)
