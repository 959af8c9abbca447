"""Small hand-made programs for unit tests."""

from typing import Any

import torch
from torch import Tensor, fx

import dspark_compiler.graph.ops  # noqa: F401  (defines the operators)
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role, TensorSpec
from dspark_compiler.graph.rewrite import emit
from dspark_compiler.graph.signature import entry_inputs

aten = torch.ops.aten
VOCAB, WIDTH, HIDDEN = 7, 4, 8


class Builder:
    """Builds one entry point operator by operator, in a program of its own or in one given.

    ``self.x`` is a value float32 [batch, width, 8] that depends on the input tokens.
    """

    def __init__(self, program: Program | None = None, kind: EntryKind = EntryKind.PREFILL, batch: int = 1) -> None:
        self.program = program if program is not None else Program({}, {})
        graph = fx.Graph()
        self._output = graph.output(())
        name = kind.value if kind is EntryKind.DECODE else f"{kind.value}_{WIDTH}"
        width = 1 if kind is EntryKind.DECODE else WIDTH
        self.entry = EntryPoint(name, kind, batch, width, fx.GraphModule({}, graph), ())
        self._output = next(iter(self.entry.graph.graph.nodes))
        for ref, spec in entry_inputs(kind, batch, width, cached=False).items():
            self.entry.add_placeholder(Role.INPUT, ref, spec)
        generator = torch.Generator().manual_seed(0)
        table = self.param("table", torch.randn(VOCAB, HIDDEN, generator=generator))
        self.x = self.call(aten.embedding.default, table, self.entry.placeholder("input_ids"))

    def param(self, ref: str, value: Tensor) -> fx.Node:
        """A param; the tensor is kept if another entry point brought it already."""
        kept = self.program.params.setdefault(ref, value)
        return self.entry.add_placeholder(Role.PARAM, ref, TensorSpec(tuple(kept.shape), kept.dtype))

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """An operator at the end of the graph."""
        return emit(self._output, target, args, kwargs)

    def done(self, *results: fx.Node, names: tuple[str, ...] | None = None) -> Program:
        """Ends the entry point; results are called out0, out1, … unless named."""
        self._output.args = (tuple(results),)
        self.entry.outputs = names or tuple(f"out{i}" for i in range(len(results)))
        self.program.entries[self.entry.name] = self.entry
        return self.program


def linear_weight(seed: int, rows: int = HIDDEN, columns: int = HIDDEN) -> Tensor:
    """A random weight [rows, columns]."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def evaluate(program: Program, name: str | None = None) -> list[Tensor]:
    """The results of an entry point without states (the only one unless named) on fixed tokens."""
    entry = program.entries[name] if name is not None else next(iter(program.entries.values()))
    tokens = torch.arange(entry.batch * entry.width).reshape(entry.batch, entry.width)
    given = {
        "input_ids": tokens % VOCAB,
        "positions": tokens,
        "sequence": torch.arange(entry.batch, dtype=torch.int32),
        "length": torch.zeros(entry.batch, dtype=torch.int32),
        "count": torch.full((entry.batch,), entry.width - 1, dtype=torch.int32),
    }
    placeholders = [n for n in entry.graph.graph.nodes if n.op == "placeholder"]
    values = [(program.params if n.meta["role"] is Role.PARAM else given)[n.meta["ref"]] for n in placeholders]
    with torch.no_grad():
        return list(fx.Interpreter(entry.graph).run(*values))


def targets(program: Program, name: str | None = None) -> list[Any]:
    """The operators of an entry point in order."""
    entry = program.entries[name] if name is not None else next(iter(program.entries.values()))
    return [n.target for n in entry.graph.graph.nodes if n.op == "call_function"]
