"""Prefill's head sees one row; logits leave in float32."""

import pytest
import torch

from dspark_compiler.errors import PassError
from dspark_compiler.graph.program import EntryKind, Role, TensorSpec
from dspark_compiler.graph.values import spec_of
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.last_position_logits import LastPositionLogits
from tests.graph.build import VOCAB, WIDTH, Builder, aten, evaluate, linear_weight, targets

dspark = torch.ops.dspark


def _builder(kind: EntryKind = EntryKind.PREFILL) -> Builder:
    """With the inputs and a state that the cache would have brought."""
    b = Builder(kind=kind)
    for ref in ("length",) if kind is EntryKind.VERIFY else ("sequence", "length", "count"):
        b.entry.add_placeholder(Role.INPUT, ref, TensorSpec((1,), torch.int32))
    b.program.states["k_cache.0"] = TensorSpec((1,), torch.float32)
    return b


def _head(b: Builder, x=None):
    return b.call(aten.linear.default, b.x if x is None else x, b.param("head", linear_weight(5, VOCAB)))


def _run(b: Builder, logits):
    program = b.done(logits, names=("logits",))
    (before,) = evaluate(program)
    result = LastPositionLogits().apply(program)
    verify(program, "after last_position_logits")
    (after,) = evaluate(program)  # counts width - 1 real tokens
    if b.entry.kind is EntryKind.PREFILL:
        before = before[:, WIDTH - 2 : WIDTH - 1]
    torch.testing.assert_close(after, before.float(), rtol=1e-5, atol=1e-6)
    return result, targets(program)[1:]


def test_the_head_sees_the_last_real_token():
    result, left = _run(b := _builder(), _head(b))
    assert result.modified
    assert left == [dspark.last_row.default, aten.linear.default]


def test_scaling_capping_and_shifting_follow_the_head():
    b = _builder()
    y = b.call(aten.tanh.default, b.call(aten.div.Tensor, _head(b), 30.0))
    y = b.call(aten.add.Tensor, b.call(aten.mul.Tensor, y, 30.0), b.param("shift", linear_weight(6, 1, VOCAB)[0]))
    result, left = _run(b, y)
    assert not result.declined
    assert left[:2] == [dspark.last_row.default, aten.linear.default]
    assert {spec_of(n).shape[1] for n in b.entry.graph.graph.nodes if n.target is aten.tanh.default} == {1}


def _no_linear(b):
    return b.call(aten.matmul.default, b.x, linear_param(b)), "is not a linear head"


def linear_param(b):
    return b.param("m", linear_weight(5, 8, VOCAB))


def _other_use_of_head(b):
    y = _head(b)
    return b.call(
        aten.matmul.default, b.call(aten.softmax.int, y, -1), b.param("m", linear_weight(1, VOCAB, VOCAB))
    ), "is not"


def _rowwise_factor(b):
    return b.call(
        aten.mul.Tensor, _head(b), b.call(aten.slice.Tensor, b.x, 2, 0, 1)
    ), "combines the logits with slice_tensor"


def _head_used_twice(b):
    y = _head(b)
    return b.call(aten.mul.Tensor, b.call(aten.tanh.default, y), b.call(aten.sigmoid.default, y)), "combines the logits"


@pytest.mark.parametrize("build", [_no_linear, _other_use_of_head, _rowwise_factor, _head_used_twice])
def test_a_head_that_is_not_found_runs_on_every_token(build):
    b = _builder()
    y, reason = build(b)
    result, left = _run(b, y)
    assert left[-1] is dspark.last_row.default
    assert len(result.declined) == 1
    assert str(result.declined[0]).startswith("prefill_4: ")
    assert reason in str(result.declined[0])
    assert "the head runs on every token" in str(result.declined[0])


@pytest.mark.parametrize("capped", [False, True])
def test_logits_with_another_reader(capped):
    b = _builder()
    y = b.call(aten.tanh.default, _head(b)) if capped else _head(b)
    b.done(y, b.call(aten.neg.default, y), names=("logits", "other"))
    result = LastPositionLogits().apply(b.program)
    assert "has other uses" in str(result.declined[0])
    assert [tuple(t.shape) for t in evaluate(b.program)] == [(1, 1, VOCAB), (1, WIDTH, VOCAB)]


@pytest.mark.parametrize("kind", [EntryKind.DECODE, EntryKind.VERIFY])
def test_other_entry_points_keep_every_row(kind):
    b = _builder(kind)
    result, left = _run(b, _head(b))
    assert not result.modified
    assert left == [aten.linear.default]


@pytest.mark.parametrize("kind", [EntryKind.PREFILL, EntryKind.DECODE])
def test_half_precision_logits_are_widened(kind):
    b = _builder(kind)
    y = b.call(aten._to_copy.default, _head(b), dtype=torch.float16)
    result, left = _run(b, y)
    assert result.modified
    assert left[-2:] == [aten._to_copy.default] * 2


def test_entry_points_without_logits_are_left_alone():
    b = _builder()
    b.done(b.x, names=("hidden",))
    assert not LastPositionLogits().apply(b.program).modified


def test_it_needs_the_cache_first():
    b = Builder()
    b.done(_head(b), names=("logits",))
    with pytest.raises(
        PassError, match=r"^last_position_logits: prefill_4: no input count; run insert_kv_cache first$"
    ):
        LastPositionLogits().apply(b.program)
