"""Products with weights become linear; others stay and say why."""

import pytest
import torch

from dspark_compiler.graph.printer import print_entry
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.canonicalize import Canonicalize
from dspark_compiler.passes.canonicalize_linear import CanonicalizeLinear
from tests.graph.build import Builder, aten, evaluate, linear_weight, targets
from tests.passes.capture import capture, tiny_model


def _run(b: Builder, *results):
    program = b.done(*results)
    Canonicalize().apply(program)
    before = evaluate(program)
    result = CanonicalizeLinear().apply(program)
    verify(program, "after canonicalize_linear")
    for one, other in zip(before, evaluate(program), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    return result, targets(program)[1:]


def _weight(b: Builder, seed: int = 0):
    return b.param(f"w{seed}", linear_weight(seed, 8, 5))  # [in, out]


def test_addmm_over_a_flattened_batch():
    b = Builder()
    bias = b.param("bias", linear_weight(1, 1, 5)[0])
    flat = b.call(aten.view.default, b.x, [-1, 8])
    result, left = _run(b, b.call(aten.view.default, b.call(aten.addmm.default, bias, flat, _weight(b)), [1, 4, 5]))
    assert result.modified
    assert left == [aten.permute.default, aten.linear.default]
    assert "aten.linear(%0, %1, @bias): float32[1, 4, 5]" in print_entry(b.entry)


def test_a_flattening_of_several_axes_ends_before_the_product():
    b = Builder()
    heads = b.call(aten.tanh.default, b.call(aten.view.default, b.x, [1, 4, 2, 4]))
    flat = b.call(aten.view.default, heads, [4, 8])
    _, left = _run(b, b.call(aten.view.default, b.call(aten.mm.default, flat, _weight(b)), [1, 4, 5]))
    assert left.count(aten.reshape.default) == 2
    assert left[-1] is aten.linear.default


@pytest.mark.parametrize("target", [aten.mm.default, aten.matmul.default])
def test_plain_products(target):
    b = Builder()
    x = b.call(aten.view.default, b.x, [4, 8]) if target is aten.mm.default else b.x
    result, left = _run(b, b.call(target, x, _weight(b)))
    assert result.modified
    assert left[-2:] == [aten.permute.default, aten.linear.default]


def test_a_transposed_weight_is_used_as_stored():
    b = Builder()
    stored = b.param("w", linear_weight(0, 5, 8))
    _, left = _run(b, b.call(aten.matmul.default, b.x, b.call(aten.t.default, stored)))
    assert left == [aten.linear.default]
    assert "aten.linear(%0, @w)" in print_entry(b.entry)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda b: (aten.matmul.default, b.x, b.call(aten.transpose.int, b.x, 1, 2)), "neither a weight"),
        (lambda b: (aten.matmul.default, b.x, b.param("w", torch.ones(1, 8, 3))), "3 axes, not 2"),
        (
            lambda b: (
                aten.addmm.default,
                b.param("b", torch.ones(4, 5)),
                b.call(aten.view.default, b.x, [4, 8]),
                _weight(b),
            ),
            "the bias has 2 axes, not 1",
        ),
    ],
)
def test_other_products_stay_and_say_why(build, reason):
    b = Builder()
    target, *args = build(b)
    result, left = _run(b, b.call(target, *args))
    assert not result.modified
    assert left[-1] is target
    assert len(result.declined) == 1
    assert str(result.declined[0]).startswith("prefill_4: ")
    assert reason in str(result.declined[0])


def test_a_product_scaled_on_the_way_stays():
    b = Builder()
    bias = b.param("bias", torch.ones(5))
    node = b.call(aten.addmm.default, bias, b.call(aten.view.default, b.x, [4, 8]), _weight(b), alpha=2)
    _, left = _run(b, node)
    assert left[-1] is aten.addmm.default


def test_a_flattened_product_that_is_used_flat_too_stays():
    b = Builder()
    flat = b.call(aten.mm.default, b.call(aten.view.default, b.x, [4, 8]), _weight(b))
    result, left = _run(b, flat, b.call(aten.view.default, flat, [1, 4, 5]))
    assert left[-1] is aten.reshape.default
    assert "has other uses" in str(result.declined[0])


def test_a_reshape_that_splits_the_product_stays():
    b = Builder()
    flat = b.call(aten.linear.default, b.call(aten.view.default, b.x, [4, 8]), b.param("w", linear_weight(0, 6)))
    result, left = _run(b, b.call(aten.view.default, flat, [1, 4, 2, 3]))
    assert left == [aten.reshape.default, aten.linear.default, aten.reshape.default]
    assert "splits the product's last axis" in str(result.declined[0])


def test_gpt2_has_no_other_products_left(golden):
    program = capture(tiny_model("gpt2"))
    for step in (Canonicalize(), CanonicalizeLinear()):
        step.apply(program)
    for name in program.entries:
        left = targets(program, name)
        assert left.count(aten.linear.default) == 9
        assert not {aten.mm.default, aten.addmm.default} & set(left)
    golden("gpt2.canonicalize_linear", print_entry(program.entries["decode"]))
