"""Works out of a graph what is known before any token is: shapes, masks, positions.

A value is a tensor on the CPU where it is known, and one on the meta device, a shape and a type, where it depends on
token ids, on a past, or on weights. Only what the wanted values need is looked at.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.operators import OPERATORS, Operator, operator_of
from dspark_compiler.frontend.onnx.operators.base import attributes, named
from dspark_compiler.frontend.onnx.types import dtype_of, read

Values = dict[ir.Value, Tensor]

# What torch raises on arguments an operator cannot take.
OPERATOR_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)

# Constants of floats with more elements are weights: they are not read to find out what is known.
_WEIGHT_ELEMENTS = 1 << 16


def evaluate(
    feeds: Mapping[ir.Value, Tensor], wanted: Iterable[ir.Value], *, weights: bool = False, known: Values | None = None
) -> Values:
    """The wanted values and all they are made of, for what graph inputs are fed.

    Args:
        feeds: known inputs, and meta tensors for the others; any value may be given and is then not worked out.
        wanted: what to work out.
        weights: read large constants, too, instead of leaving them unknown, but nothing that only a shape is asked of:
            more tokens than a table has positions can be worked out then.
        known: values worked out before, added to.

    Raises:
        UnsupportedModelError: names the node and operator that cannot be run, or the input that is not fed.
    """
    values: Values = {} if known is None else known
    values.update(feeds)
    wanted = list(wanted)
    order = needed(wanted, values)
    exact = _asked(order, wanted) if weights else set(order)
    for value in order:
        node = value.producer()
        if node is not None:
            if value not in values:
                outputs = zip(node.outputs, run(node, values, exact=not exact.isdisjoint(node.outputs)), strict=False)
                values.update((output, x) for output, x in outputs if x is not None)
            continue
        if value.const_value is None:
            users = [named(use.node) for use in value.uses()]
            user = f"{users[0]}: its" if users else "an"
            raise UnsupportedModelError(
                f"{user} input {value.name!r} has nothing to be fed with; export the model again"
            )
        values[value] = _constant(value.const_value, weights and value in exact)
    return values


def asked(wanted: Sequence[ir.Value]) -> set[ir.Value]:
    """``wanted`` and what they are made of, without what only a shape is asked of."""
    return _asked(needed(wanted, {}), wanted)


def _asked(order: Sequence[ir.Value], wanted: Sequence[ir.Value]) -> set[ir.Value]:
    found = set(wanted)
    for value in reversed(order):
        node = value.producer()
        if node is None:
            continue
        operator = require(node)
        everything = operator.shaped_by_values or (not operator.shape_only and not found.isdisjoint(node.outputs))
        places = range(len(node.inputs)) if everything else operator.static
        found.update(i for place in places if place < len(node.inputs) and (i := node.inputs[place]) is not None)
    return found


def needed(wanted: Iterable[ir.Value], known: Mapping[ir.Value, object]) -> list[ir.Value]:
    """``wanted`` and what they are made of, as far as it is not known, each after what it is made of."""
    order: list[ir.Value] = []
    done: set[ir.Value] = set()
    waiting = [(value, False) for value in wanted]
    while waiting:
        value, ready = waiting.pop()
        if ready:
            order.append(value)
            continue
        if value in done or value in known:
            continue
        done.add(value)
        waiting.append((value, True))
        node = value.producer()
        if node is not None:
            waiting.extend((i, False) for i in node.inputs if i is not None)
    return order


def run(node: ir.Node, values: Mapping[ir.Value, Tensor], *, exact: bool = True) -> tuple[Tensor | None, ...]:
    """The node's outputs, known if all its inputs are and they shall be ``exact``; None for one that is never read."""
    operator = require(node)
    inputs = [None if value is None else values[value] for value in node.inputs]
    decides = [x for place, x in enumerate(inputs) if x is not None and place not in operator.static]
    if (any(x.is_meta for x in decides) or not exact) and not operator.shape_only:
        inputs = [x if x is None or place in operator.static else x.to("meta") for place, x in enumerate(inputs)]
    return call(node, operator, inputs)


def call(node: ir.Node, operator: Operator, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The operator on torch tensors; static ones are taken apart first.

    Raises:
        UnsupportedModelError: names node and operator, and what torch says.
    """
    arguments = [
        plain(node, value) if place in operator.static and isinstance(value, Tensor) else value
        for place, value in enumerate(inputs)
    ]
    options = attributes(node)
    if operator.counts:
        options["count"] = len(node.outputs)
    try:
        result = operator.function(*arguments, **_renamed(node, options))
    except OPERATOR_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModelError(
            f"{named(node)}: cannot be run ({type(error).__name__}: {reason}); "
            "export the model with torch.onnx.export(dynamo=True), or give the Hugging Face folder"
        ) from error
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def require(node: ir.Node) -> Operator:
    """The node's entry in the table.

    Raises:
        UnsupportedModelError: there is none; says so by name.
    """
    operator = operator_of(node, OPERATORS)
    if operator is None:
        raise UnsupportedModelError(
            f"{named(node)}: this operator cannot be compiled; export the model with torch.onnx.export(dynamo=True), "
            "or give the Hugging Face folder"
        )
    return operator


def plain(node: ir.Node, value: Tensor) -> Any:
    """A known tensor as numbers in lists.

    Raises:
        UnsupportedModelError: it depends on the tokens.
    """
    if value.is_meta:
        raise UnsupportedModelError(f"{named(node)}: its shape depends on the tokens, and shapes must be known")
    return value.tolist()


def _renamed(node: ir.Node, options: dict[str, Any]) -> dict[str, Any]:
    """Axes and sizes that older opsets give as attributes, by the names of today's inputs."""
    if node.op_type == "Split" and "split" in options:
        options["sizes"] = options.pop("split")
    return options


def _constant(tensor: ir.TensorProtocol, weights: bool) -> Tensor:
    dtype = dtype_of(tensor.dtype, f"tensor {tensor.name!r}")
    if not weights and dtype.is_floating_point and tensor.size > _WEIGHT_ELEMENTS:
        return torch.empty(tuple(tensor.shape.numpy()), dtype=dtype, device="meta")
    return read(tensor)
