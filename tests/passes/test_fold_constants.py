"""What is known at compile time becomes a param, once for all entry points, within the size bound."""

import pytest
import torch

from dspark_compiler.graph.printer import print_entry
from dspark_compiler.graph.program import EntryKind
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.fold_constants import FoldConstants
from tests.graph.build import Builder, aten, evaluate, linear_weight, targets

KIB = 1024


def _run(program):
    before = [evaluate(program, name) for name in program.entries]
    result = FoldConstants().apply(program)
    verify(program, "after fold_constants")
    for ones, name in zip(before, program.entries, strict=True):
        for one, other in zip(ones, evaluate(program, name), strict=True):
            assert torch.equal(one, other)
    return result


def _one_plus(b: Builder, weight):
    return b.call(aten.mul.Tensor, b.x, b.call(aten.add.Tensor, weight, 1.0))


def test_a_shifted_weight_is_one_param_of_all_entry_points():
    first = Builder()
    first.done(_one_plus(first, first.param("norm", linear_weight(0, 1)[0])))
    second = Builder(first.program, EntryKind.DECODE)
    second.call(aten.neg.default, second.x)  # other node names than in the first
    program = second.done(_one_plus(second, second.param("norm", linear_weight(0, 1)[0])))
    weight = program.params["norm"]
    assert _run(program).modified
    (name,) = program.params.keys() - {"table"}
    assert name.startswith("norm.add_")
    assert torch.equal(program.params[name], weight + 1)
    for entry in program.entries.values():
        assert entry.placeholder(name) is not None
        assert entry.placeholder("norm") is None


def test_names_do_not_depend_on_the_run():
    names = []
    for _ in range(2):
        b = Builder()
        program = b.done(_one_plus(b, b.param("norm", linear_weight(0, 1)[0])))
        FoldConstants().apply(program)
        names.append(list(program.params))
    assert names[0] == names[1]


def test_a_param_with_other_uses_stays():
    b = Builder()
    weight = b.param("norm", linear_weight(0, 1)[0])
    program = b.done(b.call(aten.add.Tensor, _one_plus(b, weight), weight))
    _run(program)
    assert "norm" in program.params
    assert len(program.params) == 3


def test_a_transpose_is_folded_into_rows():
    b = Builder()
    weight = b.param("w", linear_weight(0, 8, 5))
    program = b.done(b.call(aten.linear.default, b.x, b.call(aten.permute.default, weight, [1, 0])))
    before = program.params["w"]
    result = FoldConstants().apply(program)
    (name,) = program.params.keys() - {"table"}
    assert result.modified
    assert torch.equal(program.params[name], before.t())
    assert program.params[name].is_contiguous()
    assert targets(program)[1:] == [aten.linear.default]


@pytest.mark.parametrize(("rows", "folded"), [(2 * KIB - 1, True), (2 * KIB, True), (2 * KIB + 1, False)])
def test_a_result_may_be_64_kib_bigger_than_what_it_replaces(rows, folded):
    b = Builder()
    # float32 [rows, 8] of a scalar: 32 bytes a row; the scalar it replaces has 4.
    start = b.param("start", torch.zeros(8))  # replaced too: 32 bytes, one row more
    table = b.call(aten.repeat.default, start, [rows + 1, 1])
    program = b.done(b.call(aten.embedding.default, table, b.entry.placeholder("input_ids")))
    result = _run(program)
    assert result.modified is folded
    assert (aten.repeat.default in targets(program)) is not folded
    assert bool(result.declined) is not folded
    if not folded:
        assert "folding it would take 65568 more bytes" in str(result.declined[0])


def test_where_the_whole_is_too_big_its_parts_are_folded():
    b = Builder()
    small = b.call(aten.add.Tensor, b.param("w", linear_weight(0, 1)[0]), 1.0)
    big = b.call(aten.repeat.default, small, [4 * KIB, 1])
    program = b.done(b.call(aten.embedding.default, big, b.entry.placeholder("input_ids")))
    _run(program)
    assert targets(program) == [aten.repeat.default, aten.embedding.default]


def test_a_big_table_that_stays_anyway_is_not_copied():
    b = Builder()
    table = b.param("big", torch.ones(4 * KIB, 8))
    ids = b.entry.placeholder("input_ids")
    scaled = b.call(aten.embedding.default, b.call(aten.mul.Tensor, table, 2.0), ids)
    program = b.done(b.call(aten.add.Tensor, scaled, b.call(aten.embedding.default, table, ids)))
    assert not _run(program).modified


def test_ranges_and_masks():
    b = Builder()
    row = b.call(aten.arange.start_step, 0, 4, device=torch.device("cpu"))
    mask = b.call(aten.le.Tensor, row, b.call(aten.unsqueeze.default, row, 1))
    zero = b.call(aten.full.default, [], 0.0)
    program = b.done(b.call(aten.where.self, b.call(aten.unsqueeze.default, mask, 2), b.x, zero))
    _run(program)
    assert targets(program)[1:] == [aten.where.self]


def test_broadcasting_is_not_stored():
    b = Builder()
    wide = b.call(aten.expand.default, b.call(aten.neg.default, b.param("w", linear_weight(0, 1)[0])), [1, 4, 8])
    program = b.done(b.call(aten.mul.Tensor, b.x, wide))
    _run(program)
    assert targets(program)[1:] == [aten.expand.default, aten.mul.Tensor]
    assert [tuple(p.shape) for p in program.params.values()] == [(7, 8), (8,)]


def test_random_numbers_are_not_constants():
    b = Builder()
    program = b.done(b.call(aten.add.Tensor, b.x, b.call(aten.rand.default, [8])))
    assert not FoldConstants().apply(program).modified


def test_a_number_becomes_a_literal():
    b = Builder()
    scale = b.param("scale", torch.tensor(2.5))
    program = b.done(b.call(aten.mul.Tensor, b.x, scale))
    assert _run(program).modified
    assert "aten.mul.Tensor(%0, 2.5)" in print_entry(b.entry)
    assert set(program.params) == {"table"}


def test_a_number_that_decides_the_type_stays_a_param():
    b = Builder()
    half = b.call(aten._to_copy.default, b.entry.placeholder("positions"), dtype=torch.int32)
    scale = b.param("scale", torch.tensor(2.5, dtype=torch.float64))
    program = b.done(b.call(aten.mul.Tensor, half, scale))  # float64; with a literal it would be float32
    assert not _run(program).modified
    assert "scale" in program.params


def test_params_are_let_go_while_folding(monkeypatch):
    """The peak is one result: each param that a fold replaces is gone before the next fold."""
    b = Builder()
    y = b.x
    for i in range(4):
        y = b.call(aten.linear.default, y, b.call(aten.permute.default, b.param(f"w{i}", linear_weight(i)), [1, 0]))
    program = b.done(y)
    sizes = []

    class Watched(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            sizes.append(len(self))

    program.params = Watched(program.params)
    FoldConstants().apply(program)
    assert sizes == [6, 6, 6, 6]
