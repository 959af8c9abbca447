"""Caches as GroupQueryAttention takes them: with room for what is not confirmed, behind what is.

A sequence's slots beyond its confirmed tokens are nobody's. Padding may be left there, and so may the tokens of a
verify: which of these are confirmed is then a matter of the length alone, and nothing has to be moved.
"""

import dataclasses

import torch
from torch import fx

from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role
from dspark_compiler.graph.rewrite import bound_args, emit
from dspark_compiler.lowering.onnx.attention import groups_queries

_dspark = torch.ops.dspark


def verify_in_place(program: Program) -> None:
    """Rewrites a program of unpruned caches, where each attention is GroupQueryAttention's to do.

    Caches get as many slots more as the widest entry point has tokens. Where there is one sequence, unconfirmed tokens
    go there instead of to scratch, and ``commit`` has nothing to do.
    """
    appends = [node for entry in program.entries.values() for node in _found(entry, _dspark.append_attention.default)]
    if not all(groups_queries(node) for node in appends if node.meta["val"].shape[0] == _batch(program)):
        return
    spare = max(entry.width for entry in program.entries.values())
    caches = {bound_args(node)[name].meta["ref"] for node in appends for name in ("k_cache", "v_cache")}
    for ref in caches:
        batch, heads, slots, dim = program.states[ref].shape
        program.states[ref] = dataclasses.replace(program.states[ref], shape=(batch, heads, slots + spare, dim))
    for entry in program.entries.values():
        for node in entry.placeholders(Role.STATE):
            if node.meta["ref"] in caches:
                spec = program.states[node.meta["ref"]]
                node.meta["val"] = torch.empty(spec.shape, dtype=spec.dtype, device="meta")
    if _batch(program) == 1:
        _drop_scratch(program)


def _batch(program: Program) -> int:
    return next(entry.batch for entry in program.entries.values() if entry.kind is EntryKind.DECODE)


def _drop_scratch(program: Program) -> None:
    """Verifies append, and what was accepted is where it belongs."""
    for entry in program.entries.values():
        for node in _found(entry, _dspark.scratch_attention.default):
            given = bound_args(node)
            # Which sequence, and how many tokens are real, GroupQueryAttention does not ask.
            args = (
                *(given[name] for name in ("q", "k", "v", "k_cache", "v_cache")),
                *(given["length"],) * 3,
                *(given[name] for name in ("scale", "window", "softcap", "sinks")),
            )
            node.replace_all_uses_with(emit(node, _dspark.append_attention.default, args))
            entry.graph.graph.erase_node(node)
        for node in _found(entry, _dspark.commit_scratch.default):
            entry.graph.graph.erase_node(node)
        for node in list(entry.placeholders(Role.STATE)):
            if not node.users:
                entry.graph.graph.erase_node(node)
    used = {node.meta["ref"] for entry in program.entries.values() for node in entry.placeholders(Role.STATE)}
    for ref in program.states.keys() - used:
        del program.states[ref]


def _found(entry: EntryPoint, target: object) -> list[fx.Node]:
    return [node for node in entry.graph.graph.nodes if node.target == target]
