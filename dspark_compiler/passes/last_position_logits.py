"""Prefill computes logits for its last real token only; all logits leave in float32, which sampling works in."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from dspark_compiler.errors import PassError
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.rewrite import emit
from dspark_compiler.graph.values import infer, spec_of
from dspark_compiler.passes.base import Pass, PassResult

aten, dspark = torch.ops.aten, torch.ops.dspark

# What models do to logits after the head: scaling, soft-capping, casting, each element by itself.
_ELEMENTWISE = (
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.tanh.default,
    aten.neg.default,
    aten._to_copy.default,
)


@dataclass(frozen=True)
class LastPositionLogits(Pass):
    """See the module; runs after insert_kv_cache, which brings the count of real tokens."""

    name: ClassVar[str] = "last_position_logits"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply; raises PassError where prefill has no count."""
        matched: list[Match] = []
        declined: list[Declined] = []
        for entry in program.entries.values():
            if "logits" not in entry.outputs:
                continue
            if entry.kind is EntryKind.PREFILL and spec_of(logits_of(entry)).shape[1] > 1:
                self._keep_last(entry, matched, declined)
            matched += _cast_logits(entry)
        return PassResult(program, tuple(matched), tuple(declined))

    def _keep_last(self, entry: EntryPoint, matched: list[Match], declined: list[Declined]) -> None:
        count = entry.placeholder("count")
        if count is None:
            raise PassError(f"{self.name}: {entry.name}: no input count; run insert_kv_cache first")
        head, rest, reason = find_head(logits_of(entry))
        if reason is None:
            hidden = head.args[0]
            assert isinstance(hidden, fx.Node)
            head.replace_input_with(hidden, emit(head, dspark.last_row.default, (hidden, count)))
            for node in (head, *rest):
                node.meta["val"] = infer(node)
            matched.append(Match(head.name, "the head runs on the last real token", entry.name))
            return
        output = next(iter(reversed(entry.graph.graph.nodes)))
        logits = logits_of(entry)
        output.replace_input_with(logits, emit(output, dspark.last_row.default, (logits, count)))
        matched.append(Match(logits.name, "logits of the last real token are picked from all", entry.name))
        declined.append(Declined(head.name, f"{reason}; the head runs on every token", entry.name))


def logits_of(entry: EntryPoint) -> fx.Node:
    """The node of an entry point's logits."""
    output = next(iter(reversed(entry.graph.graph.nodes)))
    logits = output.args[0][entry.outputs.index("logits")]
    assert isinstance(logits, fx.Node)
    return logits


def find_head(logits: fx.Node) -> tuple[fx.Node, list[fx.Node], str | None]:
    """Walks back from the logits to the head: the node reached, those after it in order, why it is no head."""
    node = logits
    rest: list[fx.Node] = []
    while node.target in _ELEMENTWISE:
        others = [operand for operand in node.all_input_nodes if operand is not node.args[0]]
        if any(len(spec_of(operand).shape) > 1 for operand in others):
            return node, rest, f"combines the logits with {others[0].name}"
        if len(node.users) > 1:
            return node, rest, "has other uses"
        rest.insert(0, node)
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    if node.target is not aten.linear.default:
        return node, rest, f"{node.target} is not a linear head"
    if len(node.users) > 1:
        return node, rest, "has other uses"
    return node, rest, None


def _cast_logits(entry: EntryPoint) -> list[Match]:
    logits = logits_of(entry)
    if spec_of(logits).dtype == torch.float32:
        return []
    output = next(iter(reversed(entry.graph.graph.nodes)))
    cast = emit(output, aten._to_copy.default, (logits,), {"dtype": torch.float32})
    output.replace_input_with(logits, cast)
    return [Match(logits.name, "logits leave in float32", entry.name)]
