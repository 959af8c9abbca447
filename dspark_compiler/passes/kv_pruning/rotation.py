"""Rope of a captured model as numbers: how far each element turns a position, and the mean of the turns ahead."""

import torch
from torch import Tensor, fx

from dspark_compiler.graph.program import EntryKind, Program, Role

_AHEAD = 512  # positions averaged over; arXiv 2510.00636 takes as many


def rotation_params(program: Program, rope: fx.Node) -> dict[str, str]:
    """Names of params, made if need be, for the fields of kv_policies.layer.Rotation.

    The tables are computed by running the part of a prefill's graph that makes cos and sin, at position 1.
    ``rope`` is the operator in ``decode``; layers that share its tables share the params.
    """
    number = _same_tables(rope)
    fields = ("angle", "cos_ahead", "sin_ahead")
    refs = {field: f"rotation.{number}.{field}" for field in fields}
    if refs["angle"] not in program.params:
        cos, sin = _tables(program, number)
        angle, scale = torch.atan2(sin, cos), torch.hypot(sin, cos)
        ahead = torch.arange(_AHEAD, dtype=torch.float64)[:, None] * angle
        values = (angle, (ahead.cos() * scale).mean(0), (ahead.sin() * scale).mean(0))
        program.params |= {ref: value.float() for ref, value in zip(refs.values(), values, strict=True)}
    return refs


def _same_tables(rope: fx.Node) -> int:
    """The number of the first layer that uses the same cos and sin."""
    for number, node in enumerate(n for n in rope.graph.nodes if n.target is rope.target):
        if node.args[1:] == rope.args[1:]:
            return number
    raise AssertionError("rope is in its own graph")


def _tables(program: Program, number: int) -> tuple[Tensor, Tensor]:
    """Cos and sin at position 1, float64 [D] each."""
    entry = next(e for e in program.entries.values() if e.kind is EntryKind.PREFILL)
    ropes = [node for node in entry.graph.graph.nodes if node.target is torch.ops.dspark.rope.default]
    _, cos, sin = ropes[number].args
    wanted = {cos, sin}
    for node in reversed(entry.graph.graph.nodes):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    known: dict[fx.Node, Tensor] = {}
    for node in entry.graph.graph.nodes:
        if node not in wanted:
            continue
        if node.op == "placeholder" and node.meta["role"] is Role.PARAM:
            known[node] = program.params[node.meta["ref"]]
        elif node.op == "placeholder":
            known[node] = torch.ones(1, entry.width, dtype=torch.int64)
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known[n])
            known[node] = node.target(*args, **kwargs)
    first_cos, first_sin = (known[table].reshape(-1, known[table].shape[-1])[0].double() for table in (cos, sin))
    return first_cos, first_sin
