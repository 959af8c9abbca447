"""Fitting finds what there is to find, and its quality is measured as it should be."""

import pytest
import torch
from torch import Tensor

from dspark_compiler.models.surrogate import apply
from dspark_compiler.training.fit import fit, quality
from dspark_compiler.training.rows import Rows, RowStore

K = 8


def rows(count: int, seed: int) -> Rows:
    """A target that no linear function follows, from inputs of uneven scales; one of them never varies."""
    x = torch.randn(count, K, generator=torch.Generator().manual_seed(seed))
    target = torch.stack([x[:, 0].abs() - 9, 40 * (x[:, 1] + x[:, 2].square())], dim=1)
    scales = torch.tensor([30.0, 1.0, 0.01, 1.0, 1.0, 1.0, 1.0, 0.0])
    return Rows(x * scales + torch.tensor([5.0] + [0.0] * 6 + [3.0]), target)


def r2(steps: int, hidden: int) -> float:
    known, unknown = rows(4000, 1).split(3000)
    network = fit(known, hidden, steps, torch.Generator().manual_seed(0))
    assert [affine.weight.shape for affine in network] == ([(hidden, K), (2, hidden)] if hidden else [(2, K)])
    return quality(apply(network, unknown.hidden), unknown.target).r2


def test_training_lowers_the_loss_on_unseen_rows() -> None:
    """By how much is bounded: the decay, made for many inputs, keeps the weights of these few small."""
    few, more = r2(3, 16), r2(600, 16)
    assert 0 < few < 0.1
    assert more > 0.4


def test_a_linear_network_follows_the_linear_part_only() -> None:
    assert 0.07 < r2(600, 0) < 0.2


def test_quality_by_hand() -> None:
    target = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0]])
    shifted = torch.stack([2 * target[:, 0], target[:, 1]], dim=1)
    found = quality(shifted, target)
    # Head 0: correlation 1, error 1 + 4 + 9 + 16 = 30 over a variance of 5; head 1 never varies.
    assert found.correlation == pytest.approx(0.5)
    assert found.r2 == pytest.approx((1 - 30 / 5) / 2)


def test_a_perfect_prediction_and_its_opposite() -> None:
    target = torch.randn(20, 3)
    assert quality(target, target).r2 == pytest.approx(1)
    assert quality(-target, target).correlation == pytest.approx(-1, abs=1e-5)


def test_rows_come_back_from_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = RowStore(tmp_path_factory.mktemp("rows") / "rows", layers=2, rows=5, hidden_size=3, kv_heads=2)
    given: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for first, count in ((0, 2), (2, 3)):
        for layer in range(2):
            given[first, layer] = torch.randn(count, 3).half().float(), torch.randn(count, 2)
            store.put(first, layer, *given[first, layer])
    for layer in range(2):
        found = store.layer(layer)
        assert torch.equal(found.hidden, torch.cat([given[0, layer][0], given[2, layer][0]]))
        assert torch.equal(found.target, torch.cat([given[0, layer][1], given[2, layer][1]]))
