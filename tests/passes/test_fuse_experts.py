"""Gathered expert products are found in both ways models write them, and left alone where they are something else."""

import pytest
import torch

from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.fuse_experts import FuseExperts
from tests.graph.build import Builder, aten, evaluate, targets

dspark = torch.ops.dspark
EXPERTS, OUT, IN, ROWS = 3, 5, 4, 6


def _parts(b: Builder, *weight_shape: int):
    generator = torch.Generator().manual_seed(1)
    weight = b.param("experts", torch.randn(weight_shape, generator=generator))
    x = b.param("x", torch.randn(ROWS, IN, generator=generator))
    expert = b.param("expert", torch.tensor([0, 2, 2, 1, 0, 2]))
    return weight, x, expert


def _run(b: Builder, result):
    program = b.done(result)
    (before,) = evaluate(program)
    outcome = FuseExperts().apply(program)
    verify(program, "after fuse_experts")
    torch.testing.assert_close(evaluate(program)[0], before)
    return outcome, targets(program)


def test_weight_times_column():
    b = Builder()
    weight, x, expert = _parts(b, EXPERTS, OUT, IN)
    gathered = b.call(aten.index.Tensor, weight, [expert])
    product = b.call(aten.bmm.default, gathered, b.call(aten.unsqueeze.default, x, -1))
    outcome, left = _run(b, b.call(aten.squeeze.dims, product, [-1]))
    assert outcome.modified
    assert left[1:] == [dspark.expert_linear.default]


def test_row_times_weight():
    b = Builder()
    weight, x, expert = _parts(b, EXPERTS, IN, OUT)
    gathered = b.call(aten.index.Tensor, weight, [expert])
    product = b.call(aten.bmm.default, b.call(aten.unsqueeze.default, x, 1), gathered)
    outcome, left = _run(b, b.call(aten.squeeze.dims, product, [1]))
    assert outcome.modified
    assert left[1:] == [aten.permute.default, dspark.expert_linear.default]


@pytest.mark.parametrize("what", ["gathered from a value", "two indices", "no gather"])
def test_others_are_left_alone(what):
    b = Builder()
    weight, x, expert = _parts(b, EXPERTS, OUT, IN)
    if what == "gathered from a value":
        gathered = b.call(aten.index.Tensor, b.call(aten.neg.default, weight), [expert])
    elif what == "two indices":
        table = b.param("pairs", torch.randn(EXPERTS, 2, OUT, IN))
        gathered = b.call(aten.index.Tensor, table, [expert, b.param("second", torch.ones(ROWS, dtype=torch.int64))])
    else:
        gathered = b.param("each", torch.randn(ROWS, OUT, IN))
    product = b.call(aten.bmm.default, gathered, b.call(aten.unsqueeze.default, x, -1))
    outcome, left = _run(b, b.call(aten.squeeze.dims, product, [-1]))
    assert not outcome.modified
    assert outcome.declined
    assert dspark.expert_linear.default not in left
