"""Runs captured entry points with torch, the reference for every later stage."""

import torch

from dspark_compiler.graph.program import EntryPoint, Program


def logits_of(entry: EntryPoint, program: Program, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    given = {"input_ids": ids, "positions": positions} | program.params
    (logits,) = entry.graph(*(given[n.meta["ref"]] for n in entry.graph.graph.nodes if n.op == "placeholder"))
    return logits


def inputs(entry: EntryPoint, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 128, (entry.batch, entry.width), generator=generator)
    return ids, torch.arange(first, first + entry.width).repeat(entry.batch, 1)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float(((got - want).abs().max() / want.abs().max()).detach())
