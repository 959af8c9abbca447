"""Nothing unused is left, save what the caller gives and what writes."""

import torch

from dspark_compiler.graph.program import EntryKind
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.eliminate_dead_code import EliminateDeadCode
from tests.graph.build import Builder, aten, linear_weight, targets


def test_dead_operators_and_their_params_go():
    b = Builder()
    b.call(aten.tanh.default, b.call(aten.linear.default, b.x, b.param("w", linear_weight(0))))
    program = b.done(b.call(aten.neg.default, b.x))
    assert EliminateDeadCode().apply(program).modified
    verify(program, "after eliminate_dead_code")
    assert targets(program)[1:] == [aten.neg.default]
    assert set(program.params) == {"table"}
    assert b.entry.placeholder("w") is None


def test_inputs_stay_unused_or_not():
    b = Builder()
    program = b.done(b.x)
    assert not EliminateDeadCode().apply(program).modified
    assert b.entry.placeholder("positions") is not None


def test_a_param_some_entry_point_uses_stays():
    first = Builder()
    first.call(aten.linear.default, first.x, first.param("w", linear_weight(0)))
    first.done(first.x)
    second = Builder(first.program, EntryKind.DECODE)
    program = second.done(second.call(aten.linear.default, second.x, second.param("w", linear_weight(0))))
    EliminateDeadCode().apply(program)
    verify(program, "after eliminate_dead_code")
    assert set(program.params) == {"table", "w"}
    assert first.entry.placeholder("w") is None


def test_writes_stay():
    b = Builder()
    b.call(aten.add_.Tensor, b.call(aten.clone.default, b.x), torch.pi)
    program = b.done(b.x)
    assert not EliminateDeadCode().apply(program).modified
