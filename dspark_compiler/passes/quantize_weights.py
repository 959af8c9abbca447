"""Weights of linears become codes with scales; products read the codes and see the numbers these stand for.

Every linear of a layer is quantized alike, but where the columns do not divide into the groups asked for, into the
largest that they do divide into. The LM head takes eight bits: its errors come out as logits, and no later layer can
make up for them. An embedding tied to it is looked up in the same codes; one of its own stays as it is.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from dspark_compiler.config import Target
from dspark_compiler.graph.program import EntryPoint, Program, Role, TensorSpec
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.rewrite import bound_args, drop_unused_params, emit
from dspark_compiler.graph.values import spec_of
from dspark_compiler.passes.base import Pass, PassResult
from dspark_compiler.quantization.activations import linear_inputs
from dspark_compiler.quantization.targets import kernels_read
from dspark_compiler.quantization.weight import QuantizedWeight, quantize
from dspark_compiler.quantization.weight_format import WeightFormat

aten, dspark = torch.ops.aten, torch.ops.dspark

_LINEAR = torch.ops.aten.linear.default
HEADS = "heads."  # what the names of decode heads' params begin with
_LEAST_GROUP = 32  # columns; smaller groups would have as many bytes of scales as some formats of codes


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """``tokens`` is a text, if there is one, that tells how much each column's errors matter: as inputs are large."""

    format: WeightFormat
    tokens: Sequence[int] = ()
    target: Target = "cpu"
    name: ClassVar[str] = "quantize_weights"
    changes_numerics: ClassVar[bool] = True

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply."""
        declined: list[Declined] = []
        matched: list[Match] = []
        inputs = linear_inputs(program, self.tokens) if self.tokens else {}
        for ref, linears in linears_of_layers(program).items():
            form = fitting_format(self.format, ref, program.params[ref].shape[1], self.target)
            if form is None:
                declined.append(Declined(ref, f"its columns divide into no groups of {_LEAST_GROUP} or more"))
                continue
            weight = quantize(program.params[ref], form, inputs[ref].square().mean(0) if ref in inputs else None)
            put_quantized(program, ref, linears, weight)
            matched.append(Match(ref, form.tag))
        drop_unused_params(program)
        return PassResult(program, tuple(matched), tuple(declined))


def fitting_format(wanted: WeightFormat, ref: str, depth: int, target: Target = "cpu") -> WeightFormat | None:
    """The format a weight of that name and so many columns takes; None if none fits.

    Where the target has no kernels for smaller groups it takes eight bits.
    """
    if not in_layer(ref) and wanted.codes == "int4":
        return WeightFormat("int8")
    group = wanted.group
    while group and depth % group:
        group //= 2
    if wanted.group and group < _LEAST_GROUP:
        return None
    form = replace(wanted, group=group)
    return form if kernels_read(form, target, depth) else WeightFormat("int8")


def in_layer(ref: str) -> bool:
    """Whether a parameter belongs to one of the model's layers: those are numbered."""
    return any(part.isdigit() for part in ref.split("."))


Linears = list[tuple[EntryPoint, fx.Node]]


def linears_of_layers(program: Program, *, heads: bool = False) -> dict[str, Linears]:
    """By name, the weights [N,K] of the target that linears read: those linears, with their entry points.

    Embeddings may read them, too, and are among those then. With ``heads`` the weights of decode heads instead.
    """
    linears: dict[str, Linears] = defaultdict(list)
    barred = set()
    for entry in program.entries.values():
        for param in entry.placeholders(Role.PARAM):
            ref = param.meta["ref"]
            for user in param.users:
                if ref.startswith(HEADS) is not heads or not (is_weight(user, param) or is_embedding(user, param)):
                    barred.add(ref)
                linears[ref].append((entry, user))
    multiplied = (ref for ref, found in linears.items() if any(user.target is _LINEAR for _, user in found))
    return {ref: linears[ref] for ref in multiplied if ref not in barred}


def is_weight(user: fx.Node, param: fx.Node) -> bool:
    """Whether a node is a linear that reads ``param`` as its weight and nothing else."""
    return user.target is _LINEAR and user.args[1] is param and param not in (user.args[0], *user.args[2:])


def is_embedding(user: fx.Node, param: fx.Node) -> bool:
    """Whether a node looks rows of ``param`` up."""
    return user.target is aten.embedding.default and user.args[0] is param and param is not user.args[1]


def put_quantized(program: Program, ref: str, linears: Linears, weight: QuantizedWeight) -> None:
    """Makes the linears over a weight read ``weight`` in its place."""
    tensors = {f"{ref}.codes": weight.codes, f"{ref}.scales": weight.scales}
    if weight.offsets is not None:
        tensors[f"{ref}.offsets"] = weight.offsets
    program.params.update(tensors)
    for entry, linear in linears:
        specs = {name: _spec(tensor) for name, tensor in tensors.items()}
        params = [entry.add_placeholder(Role.PARAM, name, spec) for name, spec in specs.items()]
        codes, scales, offsets = (*params, None)[:3]
        given = bound_args(linear)
        if linear.target is not _LINEAR:
            rows = emit(linear, dspark.quantized_embedding.default, (codes, scales, given["indices"]))
            linear.replace_all_uses_with(rows)
            entry.graph.graph.erase_node(linear)
            continue
        args = (given["input"], codes, scales, given["bias"], offsets, weight.format.bits)
        linear.replace_all_uses_with(emit(linear, dspark.quantized_linear.default, args))
        entry.graph.graph.erase_node(linear)
        assert spec_of(params[0]).shape == spec_of(given["weight"]).shape


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), tensor.dtype)
