"""Entry points made from nothing: their inputs, what runs in them, and the one that draws tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dspark_compiler.graph.program import EntryKind, EntryPoint, Role, TensorSpec
from dspark_compiler.graph.signature import entry_inputs
from dspark_compiler.graph.splice import splice
from dspark_compiler.graph.values import spec_of
from dspark_compiler.passes.last_position_logits import logits_of

_KNOBS = ("temperature", "top_k", "top_p", "min_p")


def accept_entry(of: EntryPoint, draft_probs: TensorSpec | None) -> EntryPoint:
    """The entry point that compares logits of ``of`` with what was drafted, and draws the token that follows.

    It returns what ``commit`` and the next ``draft`` take.
    """
    entry = empty_entry(f"accept_{of.width}", EntryKind.ACCEPT, of.batch, of.width)
    logits = spec_of(logits_of(of))
    specs = entry_inputs(entry.kind, entry.batch, entry.width, cached=True, logits=logits, draft_probs=draft_probs)
    inputs = add_inputs(entry, specs)

    def run(*values: Tensor) -> Any:
        value = dict(zip(inputs, values, strict=True))
        probs = torch.ops.dspark.token_probs(value["logits"], *(value[name] for name in _KNOBS))
        given = (value[name] for name in ("count", "uniform", "position", "length"))
        return torch.ops.dspark.accept(value["tokens"], probs, *given, value.get("draft_probs"))

    entry.outputs = ("accepted", "next", "position", "length")
    finish(entry, splice(output_of(entry), run, list(inputs.values())))
    return entry


def empty_entry(name: str, kind: EntryKind, batch: int, width: int) -> EntryPoint:
    """An entry point that takes and returns nothing."""
    graph = fx.Graph()
    graph.output(()).meta["val"] = ()
    return EntryPoint(name, kind, batch, width, fx.GraphModule({}, graph), ())


def add_inputs(entry: EntryPoint, specs: Mapping[str, TensorSpec]) -> dict[str, fx.Node]:
    """Gives an entry point these inputs; returns their nodes."""
    return {ref: entry.add_placeholder(Role.INPUT, ref, spec) for ref, spec in specs.items()}


def finish(entry: EntryPoint, results: Sequence[fx.Node]) -> None:
    """Sets what an entry point returns."""
    end = output_of(entry)
    end.args = (tuple(results),)
    end.meta["val"] = tuple(node.meta["val"] for node in results)


def output_of(entry: EntryPoint) -> fx.Node:
    """The node that returns."""
    end: fx.Node = next(iter(reversed(entry.graph.graph.nodes)))
    return end
