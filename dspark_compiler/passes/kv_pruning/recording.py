"""What policies keep beside keys and values: the latest queries, and a score with each token's slot.

Confirmed tokens' go where they belong at once; unconfirmed ones' wait in scratch until ``commit``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dspark_compiler.errors import InputError
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role, TensorSpec
from dspark_compiler.graph.rewrite import bound_args, emit
from dspark_compiler.passes.kv_policies.base import Policy
from dspark_compiler.passes.kv_pruning.layers import CachedLayer

aten, dspark = torch.ops.aten, torch.ops.dspark


@dataclass(frozen=True)
class Record:
    """A state that gets something of every confirmed token.

    Attributes:
        ref: the state; ``ref`` + "_scratch" holds it for unconfirmed tokens.
        append, commit: operators that write confirmed and accepted tokens'.
        by_slot: it lies with the tokens' slots, so the operators have to know which are free.
        heads, size: it is [b,heads,S,size] for the tokens of a call.
    """

    ref: str
    append: Any
    commit: Any
    by_slot: bool
    heads: int
    size: int

    def add(self, program: Program, entry: EntryPoint, layer: CachedLayer, scratch: int, value: fx.Node | None) -> None:
        """Writes ``value`` (None in ``commit``) in an entry point, before the layer attends."""

        def control(*names: str) -> Iterator[fx.Node | None]:
            return (entry.placeholder(name) for name in (*names, *(["free"] if self.by_slot else [])))

        state, _, suffix = self.ref.rpartition(".")
        waiting = f"{state}_scratch.{suffix}"
        if entry.kind in (EntryKind.VERIFY, EntryKind.COMMIT):
            program.states[waiting] = TensorSpec((layer.batch, self.heads, scratch, self.size), torch.float32)
            rows = entry.add_placeholder(Role.STATE, waiting, program.states[waiting])
        if entry.kind is EntryKind.VERIFY:
            emit(layer.attention(entry), dspark.write_scratch.default, (rows, value))
            return
        kept = entry.add_placeholder(Role.STATE, self.ref, program.states[self.ref])
        if entry.kind is EntryKind.COMMIT:
            emit(entry.graph.graph.output_node(), self.commit, (kept, rows, *control("length", "accepted")))
        else:
            emit(layer.attention(entry), self.append, (kept, value, *control("sequence", "length", "count")))


def record_queries(program: Program, layer: CachedLayer, kind: str, places: int, scratch: int) -> None:
    """Keeps the latest ``places`` queries, "rotated" or "plain", of one layer.

    Raises:
        InputError: plain queries, of a model whose queries are not turned by rope as a whole.
    """
    ref = ring_ref(kind, layer)
    program.states[ref] = TensorSpec((layer.batch, layer.heads, places, layer.head_dim), torch.float32)
    ring = Record(ref, dspark.append_queries.default, dspark.commit_queries.default, False, layer.heads, layer.head_dim)
    for entry in program.entries.values():
        value = None if entry.kind is EntryKind.COMMIT else _queries(layer.attention(entry), kind)
        ring.add(program, entry, layer, scratch, value)


def record_token_scores(program: Program, layer: CachedLayer, policy: Policy, scratch: int) -> None:
    """Keeps what the policy's layers make of the hidden state a token's key is made of.

    Raises:
        InputError: weights made for a model of other sizes.
    """
    record = Record(
        score_ref(layer), dspark.append_slot_scores.default, dspark.commit_slot_scores.default, True, layer.kv_heads, 1
    )
    for entry in program.entries.values():
        value = None if entry.kind is EntryKind.COMMIT else _token_scores(program, entry, layer, policy)
        record.add(program, entry, layer, scratch, value)


def ring_ref(kind: str, layer: CachedLayer) -> str:
    """The state of the latest queries."""
    return f"{kind}_queries.{layer.name}"


def score_ref(layer: CachedLayer) -> str:
    """The state of the scores kept with slots."""
    return f"slot_score.{layer.name}"


def rope_of(attention: fx.Node) -> fx.Node:
    """The operator that turned a layer's queries.

    Raises:
        InputError: there is none of the kind that is known.
    """
    query: fx.Node = bound_args(attention)["q"]
    if query.target is not dspark.rope.default:
        raise InputError(
            "--kv-policy expected-attention: needs queries that rope turns whole, in the half-split form, and this "
            f"model's {query.name} are not; choose another policy"
        )
    return query


def _queries(attention: fx.Node, kind: str) -> fx.Node:
    query: Any = rope_of(attention).args[0] if kind == "plain" else bound_args(attention)["q"]
    assert isinstance(query, fx.Node)
    return query


def _token_scores(program: Program, entry: EntryPoint, layer: CachedLayer, policy: Policy) -> fx.Node:
    attention = layer.attention(entry)
    value = _hidden(bound_args(attention)["k"])
    maps = policy.token_maps(int(layer.name), value.meta["val"].shape[-1], layer.kv_heads)
    for number, (weight, bias) in enumerate(maps):
        if number:
            value = emit(attention, aten.gelu.default, (value,), {"approximate": "tanh"})
        args = [value]
        for letter, tensor in (("weight", weight), ("bias", bias)):
            ref = f"token_scores.{layer.name}.{number}.{letter}"
            program.params[ref] = tensor
            spec = TensorSpec(tuple(tensor.shape), tensor.dtype)
            args.append(entry.add_placeholder(Role.PARAM, ref, spec))
        value = emit(attention, aten.linear.default, tuple(args))
    batch, width, heads = value.meta["val"].shape
    by_head = emit(attention, aten.permute.default, (value, [0, 2, 1]))
    return emit(attention, aten.reshape.default, (by_head, [batch, heads, width, 1]))


def _hidden(keys: fx.Node) -> fx.Node:
    """What the projection that makes the keys reads, [b,S,K]."""
    node = keys
    while node.target is not aten.linear.default:
        node = node.all_input_nodes[0]
    hidden: Any = node.args[0]
    assert isinstance(hidden, fx.Node)
    return hidden
