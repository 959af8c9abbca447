"""What a drafter takes from its target's graph: hidden states, embedding and head."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dspark_compiler.errors import PassError
from dspark_compiler.graph.draft_ops import EMBEDDING
from dspark_compiler.graph.extract import Extract, extract
from dspark_compiler.graph.program import EntryPoint
from dspark_compiler.passes.last_position_logits import find_head, logits_of


@dataclass(frozen=True)
class Shared:
    """The target's embedding (ids to hidden states) and head (normed hidden states to logits), params not bound yet."""

    embedding: Extract
    head: Extract

    @property
    def refs(self) -> tuple[str, ...]:
        """The params both use."""
        return tuple(dict.fromkeys((*self.embedding.refs, *self.head.refs)))

    def bind(self, params: Mapping[str, Tensor]) -> "BoundTarget":
        """With values for ``refs``."""
        return BoundTarget(self, params)


@dataclass(frozen=True)
class BoundTarget:
    """See models/drafters/base.py, Target."""

    shared: Shared
    params: Mapping[str, Tensor]

    def embed(self, ids: Tensor) -> Tensor:
        """See Target.embed."""
        return self.shared.embedding(ids, self.params)

    def logits(self, hidden: Tensor) -> Tensor:
        """See Target.logits."""
        return self.shared.head(hidden, self.params)


@dataclass(frozen=True)
class Tapped:
    """Hidden states in an entry point's graph: outputs of layers by number, and what the head reads."""

    outputs: Mapping[int, fx.Node]
    final: fx.Node


def tap(entry: EntryPoint) -> Tapped:
    """The marked hidden states of an entry point.

    Raises:
        PassError: the logits do not come from a head that is one linear.
    """
    marks = entry.graph.graph.find_nodes(op="call_function", target=torch.ops.dspark.layer_output.default)
    head, _, reason = find_head(logits_of(entry))
    if reason is not None:
        raise PassError(f"attach_decode_heads: {entry.name}: {head.name}: {reason}; no drafter can share this head")
    final = head.args[0]
    assert isinstance(final, fx.Node)
    return Tapped({mark.args[1]: mark for mark in marks}, final)


def share(entry: EntryPoint, tapped: Tapped) -> Shared:
    """The embedding and head of an entry point.

    Raises:
        PassError: one of them needs more than ids or hidden states.
    """
    ids = entry.placeholder("input_ids")
    assert ids is not None
    if EMBEDDING not in tapped.outputs:
        raise PassError(f"attach_decode_heads: {entry.name}: what the first layer is given is not marked")
    found = []
    for what, result, given in (
        ("embedding", tapped.outputs[EMBEDDING].args[0], ids),
        ("head", logits_of(entry), tapped.final),
    ):
        assert isinstance(result, fx.Node)
        part = extract(result, given)
        if isinstance(part, str):
            raise PassError(f"attach_decode_heads: {entry.name}: the {what} cannot be shared: {part}")
        found.append(part)
    return Shared(*found)


def unmark(entry: EntryPoint) -> None:
    """Takes the marks of layers out again."""
    for mark in entry.graph.graph.find_nodes(op="call_function", target=torch.ops.dspark.layer_output.default):
        source = mark.args[0]
        assert isinstance(source, fx.Node)
        mark.replace_all_uses_with(source)
        entry.graph.graph.erase_node(mark)
