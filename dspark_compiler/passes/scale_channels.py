"""Columns of weights are multiplied by activation-aware scales, and what feeds them divided: no result changes.

Quantizing comes after and rounds the columns that matter more finely (quantization/channel_scales.py). The division is
folded into what is there anyway: the weight of the norm a linear reads, or the rows of the up projection whose output
is gated and read by one. Linears that read anything else, such as attention's output, are left as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from dspark_compiler.config import Target
from dspark_compiler.graph.program import EntryPoint, Program, Role
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.passes.base import Pass, PassResult
from dspark_compiler.passes.quantize_weights import Linears, fitting_format, in_layer, linears_of_layers
from dspark_compiler.quantization.activations import linear_inputs
from dspark_compiler.quantization.channel_scales import channel_scales
from dspark_compiler.quantization.weight_format import WeightFormat

aten, dspark = torch.ops.aten, torch.ops.dspark


@dataclass(frozen=True)
class ScaleChannels(Pass):
    """``format`` is what weights will be quantized to, ``tokens`` the text the model is watched reading."""

    format: WeightFormat
    tokens: Sequence[int]
    target: Target = "cpu"
    name: ClassVar[str] = "scale_channels"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply."""
        linears = linears_of_layers(program)
        inputs = linear_inputs(program, self.tokens)
        matched, declined = [], []
        for ref in sorted(linears):
            form = fitting_format(self.format, ref, program.params[ref].shape[1], self.target)
            producer = _producer(linears[ref], program)
            reason = _objection(ref, form, producer, inputs)
            if reason is not None:
                declined.append(Declined(ref, reason))
                continue
            assert form is not None
            assert producer is not None
            scales = channel_scales(program.params[ref], inputs[ref], form)
            if scales is None:
                declined.append(Declined(ref, "no scales make its errors smaller"))
                continue
            program.params[ref] = program.params[ref] * scales
            producer.divide(program, scales)
            matched.append(Match(ref, f"columns scaled, {' and '.join(map(_kind, producer.params))} divided"))
        return PassResult(program, tuple(matched), tuple(declined))


def _objection(
    ref: str, form: WeightFormat | None, producer: "_Producer | None", inputs: Mapping[str, Tensor]
) -> str | None:
    """Why a weight's columns are left as they are, or None."""
    if not in_layer(ref):
        return "belongs to no layer"
    if form is None:
        return "is not going to be quantized"
    if producer is None:
        return "what it reads is made by no weight of its own"
    return None if ref in inputs else "read nothing of the text"


def _kind(ref: str) -> str:
    """``input_layernorm.weight`` of ``model.layers.3.input_layernorm.weight``."""
    return ref.rpartition(".")[0].rpartition(".")[2] + "." + ref.rpartition(".")[2]


@dataclass(frozen=True)
class _Producer:
    """A param whose last rows, from ``start`` on, make the channels of a value, and their bias, if any."""

    params: tuple[str, ...]
    start: int

    def divide(self, program: Program, scales: Tensor) -> None:
        """Divides the channels by ``scales``."""
        for ref in self.params:
            param = program.params[ref].clone()  # the source's own tensor stays as it is
            part = param[self.start :]
            param[self.start :] = part / (scales if part.ndim == 1 else scales[:, None])
            program.params[ref] = param


def _producer(linears: Linears, program: Program) -> _Producer | None:
    """What makes the channels these linears read, where they alone read them, the same in all entry points."""
    found = {_channels(entry, linear, program) for entry, linear in linears}
    (only,) = found if len(found) == 1 else (None,)
    return only


def _channels(entry: EntryPoint, linear: fx.Node, program: Program) -> _Producer | None:
    value = linear.args[0]
    if linear.target is not aten.linear.default or not isinstance(value, fx.Node) or list(value.users) != [linear]:
        return None
    if value.target is dspark.rms_norm.default:
        weight = value.args[1]
        return None if not isinstance(weight, fx.Node) else _private(program, 0, weight)
    if value.target is aten.mul.Tensor:
        for up in value.args:
            found = _upper_rows(up, program) if isinstance(up, fx.Node) and list(up.users) == [value] else None
            if found is not None:
                return found
    return None


def _upper_rows(up: fx.Node, program: Program) -> _Producer | None:
    """The rows of a linear whose last outputs ``up`` takes, up to the very last."""
    linear, start = up, 0
    if up.target is aten.slice.Tensor:
        given = bound_args(up)
        linear, start = given["self"], given["start"] or 0
    if linear.target is not aten.linear.default:
        return None
    given = bound_args(linear)
    params = [param for param in (given["weight"], given["bias"]) if param is not None]
    if any(param.meta.get("role") is not Role.PARAM for param in params):
        return None
    if int(up.meta["val"].shape[-1]) != program.params[params[0].meta["ref"]].shape[0] - start:
        return None
    return _private(program, start, *params)


def _private(program: Program, start: int, *params: fx.Node) -> _Producer | None:
    """The producer of these params, if each of them is read by one node of an entry point at most."""
    refs = tuple(param.meta["ref"] for param in params)
    nodes = (node for entry in program.entries.values() for node in entry.placeholders(Role.PARAM))
    shared = any(node.meta["ref"] in refs and len(node.users) > 1 for node in nodes)
    return None if shared else _Producer(refs, start)
