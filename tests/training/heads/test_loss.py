"""The vocabulary's loss and its closed-form gradients are those that autograd makes of eqs. 9 to 12."""

import pytest
import torch
from torch import Tensor

from dspark_compiler.training.heads import loss as losses
from dspark_compiler.training.heads.loss import Rows, confidence_loss, vocabulary_loss

R, D, RANK, V = 11, 6, 3, 17


def tensors(latent: bool) -> tuple[Rows, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows = Rows(
        hidden=draw(R, D).requires_grad_(),
        latent=draw(R, RANK).requires_grad_() if latent else None,
        final=draw(R, D),
        ids=torch.randint(V, (R,), generator=generator),
    )
    bias = draw(V, RANK).requires_grad_() if latent else None
    return rows, draw(R).abs(), draw(V, D), bias


def naive(rows: Rows, weight: Tensor, head: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    logits = rows.hidden @ head.T
    if bias is not None:
        assert rows.latent is not None
        logits = logits + rows.latent @ bias.T
    wanted = (rows.final @ head.T).softmax(-1)
    cross = torch.nn.functional.cross_entropy(logits, rows.ids, reduction="none")
    distance = (logits.softmax(-1) - wanted).abs().sum(-1)
    return (weight * (0.1 * cross + 0.9 * distance)).sum(), distance


@pytest.mark.parametrize("latent", [True, False])
@pytest.mark.parametrize("chunk", [4 * V, 1 << 28])
def test_value_and_gradients(monkeypatch: pytest.MonkeyPatch, latent: bool, chunk: int) -> None:
    monkeypatch.setitem(losses._CHUNK, "cpu", chunk)  # four rows a chunk: the last one is not full
    rows, weight, head, bias = tensors(latent)
    parameters = [p for p in (rows.hidden, rows.latent, bias) if p is not None]
    wanted, wanted_distance = naive(rows, weight, head, bias)
    wanted_gradients = torch.autograd.grad(3 * wanted, parameters)
    found, distance = vocabulary_loss(rows, weight, head, bias)
    gradients = torch.autograd.grad(3 * found, parameters)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(distance, wanted_distance, rtol=1e-5, atol=1e-6)
    assert not distance.requires_grad
    for gradient, expected in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_a_gpu_compiles_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    rows, weight, head, bias = tensors(True)
    assert bias is not None
    assert rows.latent is not None
    hidden, latent, there = (t.detach().cuda().requires_grad_() for t in (rows.hidden, rows.latent, bias))
    moved = Rows(hidden, latent, rows.final.cuda(), rows.ids.cuda())
    found, distance = vocabulary_loss(moved, weight.cuda(), head.cuda(), there)
    wanted, wanted_distance = vocabulary_loss(rows, weight, head, bias)
    found.backward()  # type: ignore[no-untyped-call]
    wanted.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(distance.cpu(), wanted_distance, rtol=1e-4, atol=1e-5)
    for here, gone in ((rows.hidden, hidden), (rows.latent, latent), (bias, there)):
        torch.testing.assert_close(gone.grad, here.grad, rtol=1e-3, atol=1e-4, check_device=False)


def test_without_gradients() -> None:
    rows, weight, head, bias = tensors(True)
    with torch.no_grad():
        found, distance = vocabulary_loss(rows, weight, head, bias)
        wanted, wanted_distance = naive(rows, weight, head, bias)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(distance, wanted_distance, rtol=1e-5, atol=1e-6)


def test_confidence_learns_the_acceptance() -> None:
    """Descent on the loss ends at 1 - distance / 2, the probability that a token is accepted (eq. 8)."""
    distance = torch.tensor([0.0, 0.5, 1.0, 1.9])
    logits = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        confidence_loss(logits, distance, torch.ones(4)).backward()
        optimizer.step()
    torch.testing.assert_close(logits.detach().sigmoid(), 1 - distance / 2, rtol=0, atol=0.02)
