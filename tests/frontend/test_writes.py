"""Operators that write, and what becomes of them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from dspark_compiler.frontend.tracing import trace
from dspark_compiler.frontend.writes import without_writes, writes

_X = torch.arange(6.0).reshape(2, 3)


def _graph(function: Callable[[Tensor], Tensor]) -> fx.GraphModule:
    graph = trace(lambda x: (function(x),), [_X])
    assert any(writes(node) for node in graph.graph.nodes)
    return graph


def _adds_to_a_view_of_its_own(x: Tensor) -> Tensor:
    return (x * 2)[:, None].add_(1.0)


def _uses_what_was_there_before(x: Tensor) -> Tensor:
    y = x * 2
    z = y + 1
    y.mul_(3.0)
    return y + z


def _divides_by_its_sum(x: Tensor) -> Tensor:
    found, _ = x.topk(2)
    found /= found.sum(-1, keepdim=True)
    return found + found


@pytest.mark.parametrize("function", [_adds_to_a_view_of_its_own, _uses_what_was_there_before, _divides_by_its_sum])
def test_writes_that_nobody_else_sees_are_replaced(function: Callable[[Tensor], Tensor]) -> None:
    traced = _graph(function)
    assert without_writes(traced.graph)
    assert not any(writes(node) for node in traced.graph.nodes)
    traced.graph.lint()
    traced.recompile()
    torch.testing.assert_close(traced(_X.clone())[0], function(_X.clone()))


def _writes_to_its_input(x: Tensor) -> Tensor:
    return x.add_(1.0)


def _is_seen_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    part = y[0]
    y.add_(1.0)
    return part + 1


def _writes_to_a_part(x: Tensor) -> Tensor:
    y = x * 2
    y[0].add_(1.0)
    return y + 1


def _adds_what_is_wider(x: Tensor) -> Tensor:
    return x.to(torch.float16).add_(x)


@pytest.mark.parametrize(
    "function", [_writes_to_its_input, _is_seen_through_a_view, _writes_to_a_part, _adds_what_is_wider]
)
def test_all_others_are_left_to_somebody_else(function: Callable[[Tensor], Tensor]) -> None:
    assert not without_writes(_graph(function).graph)
