"""Keys and values are kept in one byte an element, with a float32 scale for each token and key/value head.

A scale maps a token's largest element onto the type's largest value, as KIVI's per-token quantization of values does
(Liu et al. 2024, arXiv 2402.02750); keys are treated alike. The operators do the arithmetic, see graph/reference.py.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from dspark_compiler.errors import PassError
from dspark_compiler.graph.program import EntryPoint, Program, Role, TensorSpec
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.values import spec_of
from dspark_compiler.passes.base import Pass, PassResult

dspark = torch.ops.dspark

_STORED = (torch.int8, torch.float8_e4m3fn)
# The states that become bytes, each with that of its scales.
_SCALES = {
    "k_cache": "k_scale",
    "v_cache": "v_scale",
    "k_scratch": "k_scratch_scale",
    "v_scratch": "v_scratch_scale",
}


@dataclass(frozen=True)
class QuantizeKVCache(Pass):
    """``dtype``, torch.int8 or torch.float8_e4m3fn, is what elements are stored as; runs after insert_kv_cache."""

    dtype: torch.dtype
    name: ClassVar[str] = "quantize_kv_cache"
    changes_numerics: ClassVar[bool] = True

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply; raises PassError where there is no cache, or a type it cannot be stored as."""
        if self.dtype not in _STORED:
            raise PassError(f"{self.name}: {self.dtype} is not one of {', '.join(map(str, _STORED))}")
        stores = [ref for ref in program.states if ref.partition(".")[0] in _SCALES]
        if not stores:
            raise PassError(f"{self.name}: the program has no cache; insert_kv_cache comes first")
        changed = [ref for ref in stores if program.states[ref].dtype != self.dtype]
        for ref in changed:
            spec = program.states[ref]
            if not spec.dtype.is_floating_point or spec.dtype in _STORED:
                raise PassError(f"{self.name}: {ref} is stored as {spec.dtype} already")
            program.states[ref] = TensorSpec(spec.shape, self.dtype)
            program.states[_scale_of(ref)] = TensorSpec(spec.shape[:-1], torch.float32)
        operators = (
            dspark.append_attention.default,
            dspark.scratch_attention.default,
            dspark.commit_scratch.default,
        )
        for entry in program.entries.values() if changed else ():
            self._retype(program, entry)
            for node in list(entry.graph.graph.nodes):
                if node.target in operators:
                    self._give_scales(program, entry, node)
        stored = str(self.dtype).removeprefix("torch.")
        return PassResult(
            program,
            tuple(Match(ref, f"stored as {stored} with a scale a token") for ref in changed),
            tuple(Declined(ref, f"is {stored} already") for ref in stores if ref not in changed),
        )

    def _retype(self, program: Program, entry: EntryPoint) -> None:
        """Placeholders of what has become bytes say so."""
        for node in entry.placeholders(Role.STATE):
            spec = program.states[node.meta["ref"]]
            if spec_of(node) != spec:
                node.meta["val"] = torch.empty(spec.shape, dtype=spec.dtype, device="meta")

    def _give_scales(self, program: Program, entry: EntryPoint, node: fx.Node) -> None:
        """Adds, by name, the scales of the states an operator works on."""
        scales = {}
        for operand in node.all_input_nodes:
            if operand.meta.get("role") is Role.STATE:
                ref = _scale_of(operand.meta["ref"])
                scales[ref.partition(".")[0]] = entry.add_placeholder(Role.STATE, ref, program.states[ref])
        node.kwargs = {**node.kwargs, **scales}


def _scale_of(ref: str) -> str:
    """``k_cache.3`` -> ``k_scale.3``."""
    kind, _, layer = ref.partition(".")
    return f"{_SCALES[kind]}.{layer}"
