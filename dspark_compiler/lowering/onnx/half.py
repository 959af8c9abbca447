"""A program in float16: weights, keys and values, and most of what is computed, as kernels of GPUs take them.

What comes in, goes out, or is weighed, summed and drawn stays float32. So do the memories of drafters and policies, and
what drafters make of several layers' outputs side by side: these are large where a text begins (25 thousand with
SmolLM2), and a sum over them may be beyond what 16 bits hold.
"""

import dataclasses
from typing import Any

import torch
from torch import fx

from dspark_compiler.graph.program import Program, Role
from dspark_compiler.graph.rewrite import emit
from dspark_compiler.graph.values import infer

_aten, _dspark = torch.ops.aten, torch.ops.dspark

_CACHES = ("k_cache", "v_cache", "k_scratch", "v_scratch")

# What computes in float16.
_HALF = (
    *(_aten.linear.default, _aten.embedding.default, _aten.layer_norm.default, _aten.native_layer_norm.default),
    *(_dspark.quantized_linear.default, _dspark.quantized_embedding.default, _dspark.expert_linear.default),
    *(_dspark.rms_norm.default, _dspark.rope.default, _aten.silu.default, _aten.gelu.default),
    *(_dspark.append_attention.default, _dspark.scratch_attention.default, _dspark.commit_scratch.default),
)
_PRODUCTS = (_aten.linear.default, _dspark.quantized_linear.default)
_VIEWS = (_aten.reshape.default, _aten.view.default, _aten.clone.default, _aten._to_copy.default)
# What takes its operands as they are: of two types it computes in the wider one.
_EITHER = (
    *(_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor, _aten.neg.default),
    *(_aten.reshape.default, _aten.view.default, _aten.unsqueeze.default, _aten.squeeze.dims, _aten.squeeze.dim),
    *(_aten.permute.default, _aten.expand.default, _aten.clone.default, _aten.slice.Tensor, _aten.select.int),
    *(_aten.index.Tensor, _aten.gather.default, _aten.relu.default, _aten.sigmoid.default, _aten.tanh.default),
    *(_aten._to_copy.default, _dspark.last_row.default, _dspark.compact_slots.default),
)
# What reads a cache and makes float32 of it itself.
_READERS = (
    *(_dspark.attention_mass.default, _dspark.logit_moments.default),
    *(_dspark.read_keys.default, _dspark.read_values.default),
)


def to_float16(program: Program) -> None:
    """Rewrites all entry points; their inputs and outputs keep their types."""
    for ref in _only_in_half(program):
        program.params[ref] = program.params[ref].half()
    for ref, spec in program.states.items():
        if ref.partition(".")[0] in _CACHES:
            program.states[ref] = dataclasses.replace(spec, dtype=torch.float16)
    for entry in program.entries.values():
        for node in entry.graph.graph.nodes:
            if node.op == "placeholder" and node.meta["role"] is not Role.INPUT:
                held = program.params if node.meta["role"] is Role.PARAM else program.states
                node.meta["val"] = node.meta["val"].to(held[node.meta["ref"]].dtype)
            elif node.op == "call_function":
                _convert(node)
            elif node.op == "output":
                _cast_args(node, torch.float32)


def _only_in_half(program: Program) -> list[str]:
    """Weights that only float16 is made with: frequencies of positions, say, are not among them."""
    barred = set()
    for entry in program.entries.values():
        for node in entry.placeholders(Role.PARAM):
            if any(user.target not in _HALF or _joins_layers(user) for user in node.users):
                barred.add(node.meta["ref"])
    return [ref for ref, param in program.params.items() if param.dtype is torch.float32 and ref not in barred]


def _joins_layers(node: fx.Node) -> bool:
    """Whether it is a product with tensors side by side, or the norm of one."""
    if node.target not in (*_PRODUCTS, _dspark.rms_norm.default):
        return False
    source = next(operand for operand in node.args if isinstance(operand, fx.Node))
    while source.target in _VIEWS:
        (source,) = source.all_input_nodes
    return _joins_layers(source) if node.target not in _PRODUCTS else source.target is _aten.cat.default


def _convert(node: fx.Node) -> None:
    if node.target in _HALF and not _joins_layers(node):
        _cast_args(node, torch.float16)
    elif hasattr(node.target, "_schema") and node.target not in (*_EITHER, *_READERS):
        _cast_args(node, torch.float32)
    node.meta["val"] = infer(node)


def _cast_args(node: fx.Node, dtype: torch.dtype) -> None:
    """Floats among a node's operands become of a type; states are what they are."""

    def cast(operand: fx.Node) -> fx.Node:
        value: Any = operand.meta["val"]
        is_state = operand.op == "placeholder" and operand.meta["role"] is Role.STATE
        if is_state or not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype is dtype:
            return operand
        return emit(node, _aten._to_copy.default, (operand,), {"dtype": dtype})

    node.args = fx.map_arg(node.args, cast)
    node.kwargs = fx.map_arg(node.kwargs, cast)
