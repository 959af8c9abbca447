"""Weights of decode heads become codes with scales: drafts are cheaper then, and may be a little worse.

What is generated keeps its distribution, since the target that verifies stays as it is. The target's LM head is read
once a round for all drafts: they get a copy of it in eight bits, beside the one that verifies.
"""

from dataclasses import dataclass
from typing import ClassVar

from dspark_compiler.config import Target
from dspark_compiler.graph.program import EntryKind, Program, Role
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.rewrite import drop_unused_params
from dspark_compiler.passes.base import Pass, PassResult
from dspark_compiler.passes.quantize_weights import (
    HEADS,
    Linears,
    fitting_format,
    is_weight,
    linears_of_layers,
    put_quantized,
)
from dspark_compiler.quantization.weight import quantize
from dspark_compiler.quantization.weight_format import WeightFormat


@dataclass(frozen=True)
class QuantizeHeads(Pass):
    """Weights outside the drafter's layers take eight bits, as the target's do."""

    format: WeightFormat
    target: Target = "cpu"
    name: ClassVar[str] = "quantize_heads"
    changes_numerics: ClassVar[bool] = True

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply."""
        matched: list[Match] = []
        declined: list[Declined] = []
        found = [(ref, ref, linears) for ref, linears in linears_of_layers(program, heads=True).items()]
        found += [(ref, f"{HEADS}{ref}", linears) for ref, linears in _shared_linears(program).items()]
        for ref, own, linears in found:
            form = fitting_format(self.format, own, program.params[ref].shape[1], self.target)
            if form is None:
                declined.append(Declined(ref, "its columns divide into no groups"))
                continue
            put_quantized(program, own, linears, quantize(program.params[ref], form))
            matched.append(Match(ref, form.tag if own == ref else f"{form.tag}, a copy for drafts"))
        drop_unused_params(program)
        return PassResult(program, tuple(matched), tuple(declined))


def _shared_linears(program: Program) -> dict[str, Linears]:
    """By name, the target's weights that linears of drafters read, and those linears."""
    return {
        param.meta["ref"]: linears
        for entry in program.entries.values()
        if entry.kind is EntryKind.DRAFT
        for param in entry.placeholders(Role.PARAM)
        if not param.meta["ref"].startswith(HEADS)
        and (linears := [(entry, user) for user in param.users if is_weight(user, param)])
    }
