"""Patterns match what they say, rules say why they decline, nothing dead is left."""

from typing import Any, ClassVar

import pytest
import torch
from torch import fx

from dspark_compiler.graph.remarks import Declined
from dspark_compiler.graph.rewrite import (
    Maybe,
    OneOf,
    Op,
    Rule,
    Var,
    apply_rules,
    drop_unused_params,
    emit,
    erase_dead,
    match,
)
from dspark_compiler.graph.verify import verify
from tests.graph.build import Builder, aten, linear_weight, targets


def test_a_name_binds_one_thing():
    b = Builder()
    y = b.call(aten.neg.default, b.x)
    square, product = b.call(aten.mul.Tensor, y, y), b.call(aten.mul.Tensor, y, b.x)
    pattern = Op(aten.mul.Tensor, Var("a"), Var("a"))
    assert match(pattern, square) == {"a": y}
    assert match(pattern, product) is None


def test_commutative_operators_match_both_ways_and_backtrack():
    b = Builder()
    root = b.call(aten.neg.default, b.x)
    pattern = Op(aten.add.Tensor, Op(aten.neg.default, Var("x"), name="inner"), Var("y"), commutative=True)
    assert match(pattern, b.call(aten.add.Tensor, root, b.x)) == {"x": b.x, "y": b.x, "inner": root}
    assert match(pattern, b.call(aten.add.Tensor, b.x, root)) == {"x": b.x, "y": b.x, "inner": root}
    # The first way binds y to the second negation, which "same" then contradicts.
    again = b.call(aten.neg.default, root)
    same = Op(aten.sub.Tensor, pattern, Var("y"))
    node = b.call(aten.sub.Tensor, b.call(aten.add.Tensor, root, again), root)
    assert match(same, node) == {"x": root, "y": root, "inner": again}


def test_literals_and_keyword_arguments_must_agree():
    b = Builder()
    pattern = Op(aten.pow.Tensor_Scalar, Var("x"), 2)
    assert match(pattern, b.call(aten.pow.Tensor_Scalar, b.x, 2.0)) == {"x": b.x}
    assert match(pattern, b.call(aten.pow.Tensor_Scalar, b.x, 3)) is None
    add = Op(aten.add.Tensor, Var("x"), Var("y"))
    assert match(add, b.call(aten.add.Tensor, b.x, b.x, alpha=2)) is None
    assert match(add, b.call(aten.neg.default, b.x)) is None


def test_maybe_and_one_of():
    b = Builder()
    cast = b.call(aten._to_copy.default, b.x, dtype=torch.float64)
    pattern = Op(aten.tanh.default, Maybe(aten._to_copy.default, Var("x"), name="outer"))
    assert match(pattern, b.call(aten.tanh.default, cast)) == {"x": b.x, "outer": cast}
    assert match(pattern, b.call(aten.tanh.default, b.x)) == {"x": b.x, "outer": b.x}
    either = OneOf(Op(aten.neg.default, Var("x")), Op(aten.tanh.default, Var("x")))
    assert match(either, b.call(aten.tanh.default, b.x)) == {"x": b.x}
    assert match(either, b.call(aten.sin.default, b.x)) is None


class _DoubleNegation(Rule):
    pattern: ClassVar[Any] = Op(aten.neg.default, Op(aten.neg.default, Var("x"), name="inner"))

    def check(self, node: fx.Node, found: dict[str, Any]) -> str | None:
        return "the inner one has other uses" if len(found["inner"].users) > 1 else None

    def rewrite(self, node: fx.Node, found: dict[str, Any]) -> fx.Node:
        return found["x"]


def test_rules_rewrite_and_leave_nothing_dead():
    b = Builder()
    twice = b.call(aten.neg.default, b.call(aten.neg.default, b.x))
    program = b.done(b.call(aten.tanh.default, twice))
    applied = apply_rules(b.entry, (_DoubleNegation(),))
    assert [str(match) for match in applied.matched] == ["prefill_4: neg_default_1: _DoubleNegation: aten.embedding"]
    assert applied.declined == ()
    assert targets(program) == [aten.embedding.default, aten.tanh.default]
    verify(program, "test")


def test_a_declined_rule_names_node_and_reason():
    b = Builder()
    inner = b.call(aten.neg.default, b.x)
    outer = b.call(aten.neg.default, inner)
    b.done(outer, inner)
    applied = apply_rules(b.entry, (_DoubleNegation(),))
    assert applied.matched == ()
    assert applied.declined == (Declined(outer.name, "the inner one has other uses", "prefill_4"),)


def test_erase_dead_keeps_what_writes():
    b = Builder()
    keep = b.call(aten.neg.default, b.x)
    b.call(aten.tanh.default, b.call(aten.sin.default, b.x))
    write = b.call(aten.add_.Tensor, keep, 1.0)
    b.done(keep)
    assert len(erase_dead(b.entry.graph.graph)) == 2
    assert write in b.entry.graph.graph.nodes


def test_params_go_when_no_entry_point_uses_them():
    b = Builder()
    b.param("unused", linear_weight(0))
    program = b.done(b.x)
    program.params["stray"] = linear_weight(1)
    assert drop_unused_params(program)
    assert set(program.params) == {"table"}
    assert b.entry.placeholder("unused") is None
    assert not drop_unused_params(program)


def test_emit_rejects_what_the_operator_rejects():
    b = Builder()
    b.done(b.x)
    output = next(iter(reversed(b.entry.graph.graph.nodes)))
    with pytest.raises(RuntimeError):
        emit(output, aten.linear.default, (b.x, b.param("w", linear_weight(0, 3, 3))))
