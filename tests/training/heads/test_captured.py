"""Reads by CUDA graph are those without."""

import pytest
import torch
from torch import Tensor

from dspark_compiler.training.heads.captured import CapturedRead


def test_a_captured_read_gives_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    table = torch.randn(50, 8, device="cuda")
    calls = 0

    def read(ids: Tensor) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        return table[ids], table[ids].cumsum(1)

    captured = CapturedRead(read)
    for turn in range(6):
        for width in (3, 5):
            ids = torch.randint(50, (2, width), device="cuda", generator=torch.Generator("cuda").manual_seed(turn))
            found = captured(ids)
            for tensor, wanted in zip(found, (table[ids], table[ids].cumsum(1)), strict=True):
                assert torch.equal(tensor, wanted)
    assert captured.obstacle is None
    assert calls == 2 * 3  # two as they are and one captured, of each width


def test_what_cannot_be_captured_is_read_as_it_is() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    captured = CapturedRead(lambda ids: (torch.tensor(int(ids.sum()), device="cuda"),))  # waits for the GPU
    for turn in range(5):
        assert int(captured(torch.full((2,), turn, device="cuda"))[0]) == 2 * turn
    assert captured.obstacle
