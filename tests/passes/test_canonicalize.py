"""Each thing has one form afterwards, with the same values."""

import operator

import pytest
import torch

from dspark_compiler.graph.printer import print_entry
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.canonicalize import Canonicalize
from tests.graph.build import Builder, aten, evaluate, linear_weight, targets

END = 9223372036854775807


def _canonicalize(b: Builder, *results):
    """The operators after the embedding, with values checked to be the same bit for bit."""
    program = b.done(*results)
    before = evaluate(program)
    result = Canonicalize().apply(program)
    verify(program, "after canonicalize")
    for one, other in zip(before, evaluate(program), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert not Canonicalize().apply(program).modified, "a second run must find nothing to do"
    return result, targets(program)[1:]


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [
        (aten.alias.default, (), {}),
        (aten.clone.default, (), {"memory_format": torch.contiguous_format}),
        (aten.detach.default, (), {}),
        (aten.lift_fresh_copy.default, (), {}),
        (aten.dropout.default, (0.5, False), {}),
        (aten.dropout.default, (0.0, True), {}),
        (aten._to_copy.default, (), {"dtype": torch.float32}),
        (aten.view.default, ([1, 4, -1],), {}),
        (aten.expand.default, ([-1, 4, 8],), {}),
        (aten.slice.Tensor, (1, 0, END), {}),
        (aten.slice.Tensor, (), {}),
        (aten.permute.default, ([0, 1, 2],), {}),
        (aten.mul.Tensor, (1.0,), {}),
        (aten.mul.Tensor, (1,), {}),
        (aten.div.Tensor, (1.0,), {}),
        (aten.sub.Tensor, (0,), {}),
    ],
)
def test_what_does_nothing_goes(target, args, kwargs):
    b = Builder()
    result, left = _canonicalize(b, b.call(aten.tanh.default, b.call(target, b.x, *args, **kwargs)))
    assert result.modified
    assert left == [aten.tanh.default]


def test_adding_nothing_goes():
    b = Builder()
    _, left = _canonicalize(b, b.call(aten.tanh.default, b.call(aten.add.Tensor, b.x, 0.0)))
    assert left == [aten.tanh.default]


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.dropout.default, (0.5, True)),
        (aten.expand.default, ([3, 4, 8],)),
        (aten.slice.Tensor, (1, 1, 4)),
        (aten.permute.default, ([0, 2, 1],)),
        (aten.mul.Tensor, (2.0,)),
        (aten._to_copy.default, ()),
    ],
)
def test_what_does_something_stays(target, args):
    b = Builder()
    kwargs = {"dtype": torch.float64} if target is aten._to_copy.default else {}
    b.done(b.call(target, b.x, *args, **kwargs))
    Canonicalize().apply(b.program)
    assert targets(b.program)[1:] == [target]


def test_a_neutral_factor_that_changes_the_type_stays():
    b = Builder()
    _canonicalize(b, b.call(aten.mul.Tensor, b.entry.placeholder("positions"), 1.0))
    assert targets(b.program) == [aten.mul.Tensor]


def test_a_slice_with_a_step_stays():
    b = Builder()
    node = b.call(aten.slice.Tensor, b.x, -1, 0, END, 2)
    _canonicalize(b, node)
    assert "aten.slice.Tensor(%0, 2, 0, 8, 2)" in print_entry(b.entry)


def test_slices_get_plain_bounds():
    b = Builder()
    _canonicalize(b, b.call(aten.slice.Tensor, b.x, -1, -3, END))
    assert "aten.slice.Tensor(%0, 2, 5, 8)" in print_entry(b.entry)


def test_shape_changes_become_one_reshape():
    b = Builder()
    flat = b.call(aten._unsafe_view.default, b.call(aten.view.default, b.x, [-1, 8]), [2, 2, 8])
    _, left = _canonicalize(b, b.call(aten.tanh.default, b.call(aten.reshape.default, flat, [4, -1])))
    assert left == [aten.reshape.default, aten.tanh.default]
    assert "aten.reshape(%0, [4, 8])" in print_entry(b.entry)


def test_a_reshape_back_vanishes():
    b = Builder()
    back = b.call(aten.view.default, b.call(aten.view.default, b.x, [4, 8]), [1, 4, 8])
    _, left = _canonicalize(b, b.call(aten.tanh.default, back))
    assert left == [aten.tanh.default]


def test_swaps_become_permutations_and_join():
    b = Builder()
    turned = b.call(aten.transpose.int, b.call(aten.permute.default, b.x, [2, 0, 1]), 0, -1)
    _, left = _canonicalize(b, b.call(aten.tanh.default, turned))
    assert left == [aten.permute.default, aten.tanh.default]
    assert "aten.permute(%0, [1, 0, 2])" in print_entry(b.entry)


def test_t_twice_vanishes():
    b = Builder()
    matrix = b.call(aten.select.int, b.x, 0, 0)
    _, left = _canonicalize(b, b.call(aten.tanh.default, b.call(aten.t.default, b.call(aten.t.default, matrix))))
    assert left == [aten.select.int, aten.tanh.default]


@pytest.mark.parametrize(
    ("target", "how", "pieces"),
    [(aten.split_with_sizes.default, [3, 5], 2), (aten.split.Tensor, 3, 3), (aten.chunk.default, 4, 4)],
)
def test_splits_become_slices(target, how, pieces):
    b = Builder()
    split = b.call(target, b.x, how, -1)
    _, left = _canonicalize(b, *(b.call(operator.getitem, split, i) for i in range(pieces)))
    assert left == [aten.slice.Tensor] * pieces


def test_a_split_into_one_vanishes():
    b = Builder()
    whole = b.call(operator.getitem, b.call(aten.chunk.default, b.x, 1), 0)
    _, left = _canonicalize(b, b.call(aten.tanh.default, whole))
    assert left == [aten.tanh.default]


def test_params_stand_on_the_right():
    b = Builder()
    w = b.param("w", linear_weight(0, 1)[0])
    y = b.call(aten.mul.Tensor, w, b.x)
    _canonicalize(b, b.call(aten.add.Tensor, w, y))
    text = print_entry(b.entry)
    assert "aten.mul.Tensor(%0, @w)" in text
    assert "aten.add.Tensor(%1, @w)" in text


def test_a_scaled_addition_keeps_its_order():
    b = Builder()
    w = b.param("w", linear_weight(0, 1)[0])
    _canonicalize(b, b.call(aten.add.Tensor, w, b.x, alpha=2))
    assert "aten.add.Tensor(@w, %0, alpha=2)" in print_entry(b.entry)


def test_casts_keep_the_type_alone():
    b = Builder()
    options = {"dtype": torch.float64, "layout": torch.strided, "device": torch.device("cpu")}
    _canonicalize(b, b.call(aten._to_copy.default, b.x, **options))
    assert "aten._to_copy(%0, dtype=float64): float64[1, 4, 8]" in print_entry(b.entry)


def test_assertions_and_dead_nodes_go():
    b = Builder()
    b.call(aten._assert_tensor_metadata.default, b.x, None, None, torch.float32)
    b.call(aten.neg.default, b.x)
    result, left = _canonicalize(b, b.x)
    assert result.modified
    assert left == []
