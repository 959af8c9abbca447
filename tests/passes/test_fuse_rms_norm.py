"""Norms are found in each way models write them, and left alone where fusing would change them."""

import pytest
import torch

from dspark_compiler.graph.printer import print_entry
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.fuse_rms_norm import FuseRMSNorm
from tests.graph.build import Builder, aten, evaluate, linear_weight, targets

dspark = torch.ops.dspark
BF16, F32 = torch.bfloat16, torch.float32


def _cast(b: Builder, x, dtype):
    return b.call(aten._to_copy.default, x, dtype=dtype)


def _norm(b: Builder, x, *, axes=(-1,), eps=1e-6, square="pow", flip=False):
    squared = b.call(aten.pow.Tensor_Scalar, x, 2) if square == "pow" else b.call(aten.mul.Tensor, x, x)
    mean = b.call(aten.mean.dim, squared, list(axes), True)
    scale = b.call(aten.rsqrt.default, b.call(aten.add.Tensor, mean, eps))
    return b.call(aten.mul.Tensor, *((scale, x) if flip else (x, scale)))


def _weight(b: Builder, dtype=F32):
    return b.param("w", linear_weight(3, 1)[0].to(dtype))


def _run(b: Builder, *results, exact=True):
    program = b.done(*results)
    before = evaluate(program)
    result = FuseRMSNorm().apply(program)
    verify(program, "after fuse_rms_norm")
    for one, other in zip(before, evaluate(program), strict=True):
        # Rounding once instead of twice may move a bfloat16 by a unit in the last place, 2^-8.
        torch.testing.assert_close(one, other, rtol=0 if exact else 2**-7, atol=0)
    return result, targets(program)[1:]


@pytest.mark.parametrize("square", ["pow", "mul"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("weight_first", [None, False, True])
@pytest.mark.parametrize("axes", [(-1,), (2,)])
def test_float32(square, flip, weight_first, axes):
    b = Builder()
    y = _norm(b, b.x, square=square, flip=flip, axes=axes)
    if weight_first is not None:
        y = b.call(aten.mul.Tensor, *((_weight(b), y) if weight_first else (y, _weight(b))))
    result, left = _run(b, y)
    assert result.modified
    assert left == [dspark.rms_norm.default]


@pytest.mark.parametrize("weight", ["none", "after cast", "before cast", "widened before cast"])
def test_half_precision(weight):
    b = Builder()
    x = _cast(b, b.x, BF16)
    y = _norm(b, _cast(b, x, F32))
    if weight in ("none", "after cast"):
        y = _cast(b, y, BF16)
        if weight == "after cast":  # Llama
            y = b.call(aten.mul.Tensor, _weight(b, BF16), y)
    else:  # Gemma, gpt-oss
        w = _weight(b, BF16 if weight == "widened before cast" else F32)
        y = _cast(b, b.call(aten.mul.Tensor, y, _cast(b, w, F32) if weight == "widened before cast" else w), BF16)
    _, left = _run(b, y, exact=False)
    assert left[0] is aten._to_copy.default
    assert left[-1] is dspark.rms_norm.default
    assert print_entry(b.entry).count("rms_norm(%1, ") == 1, "the norm must read the value before the cast"


def test_a_result_left_in_float32():
    b = Builder()
    wide = _cast(b, _cast(b, b.x, BF16), F32)
    _, left = _run(b, _norm(b, wide))
    assert left == [aten._to_copy.default, aten._to_copy.default, dspark.rms_norm.default]


def test_other_uses_of_the_input_stay():
    b = Builder()
    _, left = _run(b, b.call(aten.add.Tensor, b.x, _norm(b, b.x)), b.x)
    assert left == [dspark.rms_norm.default, aten.add.Tensor]


def test_a_norm_used_without_its_weight_too():
    b = Builder()
    y = _norm(b, b.x)
    result, left = _run(b, b.call(aten.mul.Tensor, y, _weight(b)), y)
    assert left == [dspark.rms_norm.default, aten.mul.Tensor]
    assert any("has other uses" in note for note in map(str, result.declined))


def test_a_norm_of_a_norm():
    b = Builder()
    _, left = _run(b, _norm(b, _norm(b, b.x)))
    assert left == [dspark.rms_norm.default] * 2


def test_a_factor_that_is_no_weight():
    b = Builder()
    result, left = _run(b, b.call(aten.mul.Tensor, _norm(b, b.x), b.x))
    assert left == [dspark.rms_norm.default, aten.mul.Tensor]
    assert "is not a weight of 8 numbers" in str(result.declined[0])


def _middle_axis(b):
    return _norm(b, b.x, axes=(1,)), "the mean runs over axes [1], not the last one"


def _computed_epsilon(b):
    return _norm(b, b.x, eps=b.param("eps", torch.tensor(1e-6))), "epsilon is not a literal"


def _narrowed(b):
    return _cast(b, _norm(b, b.x), torch.float64), None


def _narrowed_in_the_middle(b):
    return b.call(aten.mul.Tensor, _cast(b, _norm(b, b.x), BF16), _weight(b)), None  # float32 by promotion


@pytest.mark.parametrize("build", [_middle_axis, _computed_epsilon])
def test_declines_with_a_reason(build):
    b = Builder()
    y, reason = build(b)
    result, left = _run(b, y)
    assert not result.modified
    assert dspark.rms_norm.default not in left
    assert any(reason in note and note.startswith("prefill_4: mul_tensor: ") for note in map(str, result.declined))


@pytest.mark.parametrize("build", [_narrowed, _narrowed_in_the_middle])
def test_casts_that_round_stay_outside(build):
    b = Builder()
    y, _ = build(b)
    _, left = _run(b, y)
    assert left[0] is dspark.rms_norm.default
    assert aten._to_copy.default in left


def test_layer_norm_stays():
    b = Builder()
    w = _weight(b)
    result, left = _run(b, b.call(aten.layer_norm.default, b.x, [8], w, w, 1e-5))
    assert not result.modified
    assert left == [aten.layer_norm.default]
