"""Rope is found in its half-split form, and left alone where it is something else."""

import pytest
import torch

from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.fuse_rope import FuseRope
from tests.graph.build import Builder, aten, evaluate, targets

dspark = torch.ops.dspark
SHAPE = (2, 3, 4, 8)


def _parts(b: Builder, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = b.param("x", torch.randn(SHAPE, generator=generator))
    cos, sin = (b.param(name, torch.randn(2, 1, 4, 8, generator=generator)) for name in ("cos", "sin"))
    return x, cos, sin


def _halves(b: Builder, x, *, negate_first: bool = True):
    first, second = b.call(aten.slice.Tensor, x, 3, 0, 4), b.call(aten.slice.Tensor, x, 3, 4, 8)
    if negate_first:
        return b.call(aten.cat.default, [b.call(aten.neg.default, second), first], -1)
    return b.call(aten.cat.default, [second, b.call(aten.neg.default, first)], -1)


def _run(b: Builder, result):
    program = b.done(result)
    (before,) = evaluate(program)
    outcome = FuseRope().apply(program)
    verify(program, "after fuse_rope")
    torch.testing.assert_close(evaluate(program)[0], before, rtol=0, atol=0)
    return outcome, targets(program)


@pytest.mark.parametrize("swapped", [False, True])
def test_half_split(swapped):
    b = Builder()
    x, cos, sin = _parts(b)
    products = [b.call(aten.mul.Tensor, x, cos), b.call(aten.mul.Tensor, _halves(b, x), sin)]
    outcome, left = _run(b, b.call(aten.add.Tensor, *(products[::-1] if swapped else products)))
    assert outcome.modified
    assert dspark.rope.default in left
    assert aten.cat.default not in left


def test_other_rotation_is_left_alone():
    b = Builder()
    x, cos, sin = _parts(b)
    rotated = b.call(aten.mul.Tensor, _halves(b, x, negate_first=False), sin)
    outcome, left = _run(b, b.call(aten.add.Tensor, b.call(aten.mul.Tensor, x, cos), rotated))
    assert not outcome.modified
    assert dspark.rope.default not in left
    assert any("halves swapped" in note for note in map(str, outcome.declined))


def test_halves_of_another_tensor_are_left_alone():
    b = Builder()
    x, cos, sin = _parts(b)
    other = b.param("other", torch.ones(SHAPE))
    rotated = b.call(aten.mul.Tensor, _halves(b, other), sin)
    outcome, _ = _run(b, b.call(aten.add.Tensor, b.call(aten.mul.Tensor, x, cos), rotated))
    assert not outcome.modified


def test_table_of_another_shape_is_left_alone():
    b = Builder()
    x, _, sin = _parts(b)
    wide = b.param("wide", torch.ones(SHAPE))
    rotated = b.call(aten.mul.Tensor, _halves(b, x), sin)
    outcome, _ = _run(b, b.call(aten.add.Tensor, b.call(aten.mul.Tensor, x, wide), rotated))
    assert not outcome.modified
    assert any("cos is not" in note for note in map(str, outcome.declined))
