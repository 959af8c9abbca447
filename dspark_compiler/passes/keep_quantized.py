"""Weights of a quantized checkpoint stay the codes and scales it has, to the bit, instead of the numbers they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dspark_compiler.config import Target
from dspark_compiler.errors import PassError
from dspark_compiler.graph.program import Program
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.rewrite import drop_unused_params
from dspark_compiler.passes.base import Pass, PassResult
from dspark_compiler.passes.quantize_weights import Linears, linears_of_layers, put_quantized
from dspark_compiler.quantization.targets import kernels_read
from dspark_compiler.quantization.weight import QuantizedWeight

_SAME = 1e-5  # of the largest number, by which those codes stand for and those the program has may differ


@dataclass(frozen=True)
class KeepQuantized(Pass):
    """``stored`` holds the checkpoint's weights by their names; the program's numbers are what they stand for."""

    stored: Mapping[str, QuantizedWeight]
    target: Target = "cpu"
    name: ClassVar[str] = "keep_quantized"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply; raises PassError where no weight could be kept."""
        declined: list[Declined] = []
        matched: list[Match] = []
        linears = linears_of_layers(program)
        for ref, places in linears.items():
            found = self._stored(program, ref)
            if isinstance(found, QuantizedWeight) and _is_looked_up(places) and not _has_row_scales(found):
                found = "its rows are looked up, too, where there is no kernel for groups of columns"
            if isinstance(found, str):
                declined.append(Declined(ref, found))
                continue
            put_quantized(program, ref, places, found)
            matched.append(Match(ref, found.format.tag))
        if linears and not matched:
            raise PassError(f"{self.name}: no weight is as the checkpoint has it; first, {declined[0]}")
        drop_unused_params(program)
        return PassResult(program, tuple(matched), tuple(declined))

    def _stored(self, program: Program, ref: str) -> QuantizedWeight | str:
        """The checkpoint's form of a weight, or why there is none."""
        names = program.stacked.get(ref, (ref,))
        missing = [name for name in names if name not in self.stored]
        if missing:
            return f"{missing[0]} is not quantized in the checkpoint"
        weight = stack([self.stored[name] for name in names])
        if weight is None:
            return "the weights stacked in it are of unlike formats"
        if not kernels_read(weight.format, self.target, weight.codes.shape[1]):
            return f"the {self.target} target has no kernels for {weight.format.tag}"
        plain = program.params[ref].float()
        if plain.shape != weight.codes.shape or float((weight.dequantized() - plain).abs().max()) > _SAME * float(
            plain.abs().max()
        ):
            return "was changed since it was read"
        return weight


def _is_looked_up(places: Linears) -> bool:
    return any(user.target is torch.ops.aten.embedding.default for _, user in places)


def _has_row_scales(weight: QuantizedWeight) -> bool:
    return weight.format.bits == 8 and weight.offsets is None and weight.scales.shape[1] == 1


def stack(weights: Sequence[QuantizedWeight]) -> QuantizedWeight | None:
    """The weights one below the other; None if their groups or kinds of codes differ.

    Four-bit codes beside eight-bit ones take eight bits, and no offsets beside others are zeros: nothing changes.
    """
    first = weights[0]
    kinds = {weight.codes.dtype for weight in weights}
    if len(kinds) > 1 or len({weight.scales.shape[1] for weight in weights}) > 1:
        return None
    bits = max(weight.format.bits for weight in weights)
    offsets: list[Tensor] = []
    if any(weight.offsets is not None for weight in weights):
        offsets = [torch.zeros_like(w.scales) if w.offsets is None else w.offsets for w in weights]
    codes = first.format.codes if first.format.bits == bits else "int8"
    return QuantizedWeight(
        replace(first.format, codes=codes, offsets=bool(offsets)),
        torch.cat([weight.codes for weight in weights]),
        torch.cat([weight.scales for weight in weights]),
        torch.cat(offsets) if offsets else None,
    )
