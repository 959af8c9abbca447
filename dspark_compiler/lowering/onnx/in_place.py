"""Caches as GroupQueryAttention takes them: with room for what is not confirmed, behind what is.

A sequence's slots beyond its confirmed tokens are nobody's. Padding may be left there, and so may the tokens of a
verify: which of these are confirmed is then a matter of the length alone, and nothing has to be moved.
"""

import dataclasses

import torch
from torch import fx

from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role
from dspark_compiler.graph.rewrite import bound_args, emit
from dspark_compiler.lowering.onnx.attention import groups_queries, mark_grouped

_dspark = torch.ops.dspark


def verify_in_place(program: Program) -> None:
    """Rewrites what GroupQueryAttention can do of a program: attention to caches that are never pruned.

    Such caches get as many slots more as the widest entry point has tokens. Where there is one sequence, unconfirmed
    tokens go there instead of to scratch, and ``commit`` has nothing to do for them.
    """
    spare = max(entry.width for entry in program.entries.values())
    batch = next(entry.batch for entry in program.entries.values() if entry.kind is EntryKind.DECODE)
    appends = [node for entry in program.entries.values() for node in _found(entry, _dspark.append_attention.default)]
    refused = {_caches(node) for node in appends if node.meta["val"].shape[0] == batch and not groups_queries(node)}
    appends = [node for node in appends if _caches(node) not in refused]
    for ref in {ref for node in appends for ref in _caches(node)}:
        rows, heads, slots, dim = program.states[ref].shape
        _resize(program, ref, (rows, heads, slots + spare, dim))
    for node in appends:
        mark_grouped(node, groups_queries(node))
    if batch == 1:
        _drop_scratch(program, {_caches(node) for node in appends})


def _resize(program: Program, ref: str, shape: tuple[int, ...]) -> None:
    """Gives a state another shape."""
    spec = program.states[ref] = dataclasses.replace(program.states[ref], shape=shape)
    for entry in program.entries.values():
        if (node := entry.placeholder(ref)) is not None:
            node.meta["val"] = torch.empty(spec.shape, dtype=spec.dtype, device="meta")


def _drop_scratch(program: Program, caches: set[tuple[str, str]]) -> None:
    """Verifies append to these caches, and what was accepted is where it belongs."""
    for entry in program.entries.values():
        for node in _found(entry, _dspark.scratch_attention.default):
            if _caches(node) not in caches:
                continue
            given = bound_args(node)
            # Which sequence, and how many tokens are real, GroupQueryAttention does not ask.
            args = (
                *(given[name] for name in ("q", "k", "v", "k_cache", "v_cache")),
                *(given["length"],) * 3,
                *(given[name] for name in ("scale", "window", "softcap", "sinks")),
            )
            append = emit(node, _dspark.append_attention.default, args)
            mark_grouped(append, grouped=True)
            node.replace_all_uses_with(append)
            entry.graph.graph.erase_node(node)
        for node in _found(entry, _dspark.commit_scratch.default):
            if _caches(node) in caches:
                entry.graph.graph.erase_node(node)
        for node in list(entry.placeholders(Role.STATE)):
            if not node.users:
                entry.graph.graph.erase_node(node)
    used = {node.meta["ref"] for entry in program.entries.values() for node in entry.placeholders(Role.STATE)}
    for ref in program.states.keys() - used:
        del program.states[ref]


def _caches(node: fx.Node) -> tuple[str, str]:
    """The states of keys and values an operator works on."""
    given = bound_args(node)
    return given["k_cache"].meta["ref"], given["v_cache"].meta["ref"]


def _found(entry: EntryPoint, target: object) -> list[fx.Node]:
    return [node for node in entry.graph.graph.nodes if node.target == target]
