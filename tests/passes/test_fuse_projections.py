"""Linears over one input are stacked, unless something else depends on the pieces."""

import gc
import weakref

import pytest
import torch

from dspark_compiler.graph.printer import print_program
from dspark_compiler.graph.program import EntryKind, Program
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.fuse_projections import FuseProjections
from tests.graph.build import Builder, aten, evaluate, linear_weight, targets

ROWS = {"q": 8, "k": 3, "v": 5}


def _linear(b: Builder, letter: str, x=None, bias: bool = False):
    args = [
        b.x if x is None else x,
        b.param(f"l.0.{letter}.weight", linear_weight(ord(letter[-1]), ROWS.get(letter, 4))),
    ]
    if bias:
        args.append(b.param(f"l.0.{letter}.bias", linear_weight(ord(letter[-1]) + 100, 1, ROWS.get(letter, 4))[0]))
    return b.call(aten.linear.default, *args)


def _run(program: Program, copied: str | None = None):
    before = [evaluate(program, name) for name in program.entries]
    result = FuseProjections(copied).apply(program)
    verify(program, "after fuse_projections")
    for ones, name in zip(before, program.entries, strict=True):
        for one, other in zip(ones, evaluate(program, name), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    return result


@pytest.mark.parametrize("biased", ["", "qkv", "k"])
def test_stacks_are_the_same_in_all_entry_points(biased):
    first = Builder()
    first.done(*(_linear(first, c, bias=c in biased) for c in "qkv"))
    second = Builder(first.program, EntryKind.DECODE)
    program = second.done(*(_linear(second, c, bias=c in biased) for c in "vqk"))  # met in another order
    pieces = dict(program.params)
    assert _run(program).modified
    expected = {"table", "l.0.q_k_v.weight"} | ({"l.0.q_k_v.bias"} if biased else set())
    assert set(program.params) == expected
    assert torch.equal(program.params["l.0.q_k_v.weight"], torch.cat([pieces[f"l.0.{c}.weight"] for c in "qkv"]))
    for name in program.entries:
        assert targets(program, name)[1:] == [aten.linear.default] + [aten.slice.Tensor] * 3


def test_golden(golden):
    b = Builder()
    y = b.call(aten.tanh.default, _linear(b, "q"))
    gate = _linear(b, "gate", y)
    program = b.done(_linear(b, "k"), b.call(aten.mul.Tensor, b.call(aten.silu.default, gate), _linear(b, "up", y)))
    _run(program)
    golden("fuse_projections", print_program(program))


def test_a_linear_alone_stays():
    b = Builder()
    assert not _run(b.done(_linear(b, "k", _linear(b, "q")))).modified


def _tied(b: Builder):
    y = _linear(b, "k"), _linear(b, "q")
    return (*y, b.call(aten.embedding.default, b.entry.placeholder("l.0.q.weight"), b.entry.placeholder("input_ids")))


def _mixed(b: Builder):
    wide = b.param("l.0.k.weight", linear_weight(1).to(torch.float64))
    # As a router kept in float64 would be if it read the same value; torch refuses it only when it runs.
    return _linear(b, "q"), b.call(aten.linear.default, b.x, wide)


def _twice(b: Builder):
    return _linear(b, "q"), b.call(aten.neg.default, _linear(b, "q"))


def _shared_bias(b: Builder):
    bias = b.param("bias", torch.ones(4))
    return [b.call(aten.linear.default, b.x, b.param(c, linear_weight(ord(c), 4)), bias) for c in "ab"]


def _computed_bias(b: Builder):
    bias = b.call(aten.neg.default, b.param("bias", torch.ones(3)))
    return _linear(b, "q"), b.call(aten.linear.default, b.x, b.param("l.0.k.weight", linear_weight(1, 3)), bias)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (_tied, "l.0.q.weight has other uses"),
        (_twice, "a weight or bias is shared between the projections"),
        (_shared_bias, "a weight or bias is shared between the projections"),
        (_computed_bias, "the bias neg_default is computed"),
    ],
)
def test_declines_with_a_reason(build, reason):
    b = Builder()
    program = b.done(*build(b))
    before = print_program(program)
    result = _run(program)
    assert not result.modified
    assert print_program(program) == before
    (note,) = result.declined
    assert str(note).startswith("prefill_4: linear_default")
    assert str(note).endswith(reason)


def test_types_are_not_mixed():
    b = Builder()
    program = b.done(*_mixed(b))
    result = FuseProjections().apply(program)
    assert not result.modified
    assert "the projections mix torch.float32 and torch.float64" in str(result.declined[0])


def test_entry_points_that_group_differently():
    first = Builder()
    first.done(*(_linear(first, c) for c in "qkv"))
    second = Builder(first.program, EntryKind.DECODE)
    program = second.done(
        *(_linear(second, c) for c in "qk"), _linear(second, "v", second.call(aten.tanh.default, second.x))
    )
    result = _run(program)
    assert not result.modified
    assert len(result.declined) == 2


@pytest.mark.parametrize("biased", ["", "k"])
def test_weights_of_some_names_are_copied_into_several_stacks(biased):
    def build() -> Program:
        first = Builder()
        first.done(*(_linear(first, c, bias=c in biased) for c in "qkv"))
        second = Builder(first.program, EntryKind.DECODE)
        return second.done(*(_linear(second, c, bias=c in biased) for c in "kv"))

    assert not _run(build(), copied="heads.").modified
    program = build()
    pieces = dict(program.params)
    assert _run(program, copied="l.").modified
    assert {name for name in program.params if name.endswith("weight")} == {"l.0.q_k_v.weight", "l.0.k_v.weight"}
    for stack in ("qkv", "kv"):
        expected = torch.cat([pieces[f"l.0.{c}.weight"] for c in stack])
        assert torch.equal(program.params[f"l.0.{'_'.join(stack)}.weight"], expected)


def test_a_copy_is_kept_for_linears_that_cannot_be_stacked():
    first = Builder()
    first.done(*(_linear(first, c) for c in "qkv"))
    second = Builder(first.program, EntryKind.DECODE)
    bias = second.call(aten.neg.default, second.param("l.0.q.bias", linear_weight(9, 1, ROWS["q"])[0]))
    weight = second.param("l.0.q.weight", linear_weight(ord("q"), ROWS["q"]))
    program = second.done(_linear(second, "v"), second.call(aten.linear.default, second.x, weight, bias))
    result = _run(program, copied="l.")
    assert len(result.declined) == 1
    assert {name for name in program.params if name.endswith("weight")} == {
        *("l.0.q_k_v.weight", "l.0.q.weight", "l.0.v.weight")
    }


def test_many_pieces_get_a_short_name():
    b = Builder()
    program = b.done(*(_linear(b, f"e{i}") for i in range(6)))
    _run(program)
    assert "l.0.e0_to_e5.weight" in program.params


def test_pieces_are_let_go_at_once():
    b = Builder()
    program = b.done(*(_linear(b, c) for c in "qkv"))
    pieces = [weakref.ref(program.params[f"l.0.{c}.weight"]) for c in "qkv"]
    FuseProjections().apply(program)
    gc.collect()
    assert [piece() for piece in pieces] == [None] * 3
