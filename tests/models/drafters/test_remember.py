"""What a drafter remembers does not depend on the pieces a text came in, nor on tokens that were rejected."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dspark_compiler.models.drafters.base import Draft, Drafter
from dspark_compiler.models.drafters.checkpoint import build
from tests.models.drafters import tiny
from tests.models.drafters.torch_memory import ModelTarget, Sampling, TorchMemory, greedy, remember
from tests.tiny_models import TINY, VOCAB

BATCH, LENGTH, SPARE = 2, 17, 6


@pytest.fixture(scope="module")
def target() -> ModelTarget:
    return ModelTarget(TINY["qwen3"]())


def fitting(name: str, window: int = 64) -> Drafter:
    """A drafter for the tiny model of two layers."""
    config = replace(tiny.CONFIGS[name], hidden_size=32, vocab_size=VOCAB, num_target_layers=2, context_window=window)
    taps = () if name == "medusa" else (-1, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = build(replace(config, target_layer_ids=taps, mask_token_id=VOCAB - 1))
        for tensor in made.state_dict().values():
            tensor.add_(0.2 * torch.randn(tensor.shape))
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(3, VOCAB, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(2))


def draft(drafter: Drafter, target: ModelTarget, memory: TorchMemory, ids: Tensor) -> Draft:
    return drafter.draft(ids[:, LENGTH], torch.full((BATCH,), LENGTH), target, memory, greedy)


def at_once(drafter: Drafter, target: ModelTarget, ids: Tensor) -> Draft:
    memory = TorchMemory(drafter, BATCH, SPARE)
    remember(drafter, target, memory, ids, 0, LENGTH)
    memory.confirm(LENGTH)
    return draft(drafter, target, memory, ids)


def equal(got: Draft, want: Draft) -> None:
    assert torch.equal(got.tokens, want.tokens)
    assert (got.confidence is None) == (want.confidence is None)
    if got.confidence is not None and want.confidence is not None:
        torch.testing.assert_close(got.confidence, want.confidence, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", tiny.CONFIGS)
@pytest.mark.parametrize("window", [64, 7])
def test_prompt_in_chunks_then_rounds_with_rejected_tokens(
    target: ModelTarget, ids: Tensor, name: str, window: int
) -> None:
    drafter = fitting(name, window)
    memory = TorchMemory(drafter, BATCH, SPARE)
    for begin, end in ((0, 5), (5, 9), (9, 10)):
        remember(drafter, target, memory, ids, begin, end)
        memory.confirm(end - begin)
    # Each round verifies six tokens and keeps fewer; the next one overwrites the rest.
    for begin, kept in ((10, 3), (13, 1), (14, 3)):
        wrong = ids.clone()
        wrong = torch.cat([wrong[:, : begin + kept], (wrong[:, begin + kept :] + 1) % VOCAB, wrong[:, :9]], dim=1)
        remember(drafter, target, memory, wrong, begin, begin + SPARE)
        memory.confirm(kept)
    equal(draft(drafter, target, memory, ids), at_once(drafter, target, ids))


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_sequences_do_not_mix(target: ModelTarget, ids: Tensor, name: str) -> None:
    drafter = fitting(name)
    both = at_once(drafter, target, ids)
    swapped = at_once(drafter, target, ids.flip(0))
    assert torch.equal(both.tokens, swapped.tokens.flip(0))
    assert not torch.equal(both.tokens[0], both.tokens[1])


@pytest.mark.parametrize("name", ["rnn", "eagle3"])
def test_a_window_hides_what_is_older(target: ModelTarget, ids: Tensor, name: str) -> None:
    drafter = fitting(name, 4)
    other = ids.clone()
    memory = TorchMemory(drafter, BATCH, SPARE)
    remember(drafter, target, memory, ids, 0, LENGTH)
    memory.confirm(LENGTH)
    before = draft(drafter, target, memory, other)
    for ring in ("k.0", "v.0"):  # the four places in use are those of positions 13 to 16
        places = memory.rings[ring].shape[2]
        old = [place for place in range(places) if place not in {p % places for p in range(13, 17)}]
        memory.rings[ring][:, :, old] = 100.0
    equal(draft(drafter, target, memory, other), before)
    memory.rings["v.0"][:, :, 13 % (4 + SPARE)] = 100.0
    assert not torch.equal(draft(drafter, target, memory, other).tokens, before.tokens)


def test_a_draft_is_drawn_from_what_it_reports(target: ModelTarget, ids: Tensor) -> None:
    drafter = fitting("rnn")
    memory = TorchMemory(drafter, BATCH, SPARE)
    remember(drafter, target, memory, ids, 0, LENGTH)
    memory.confirm(LENGTH)
    uniform = torch.rand(BATCH, tiny.G, generator=torch.Generator().manual_seed(1))
    drawn = drafter.draft(ids[:, LENGTH], torch.full((BATCH,), LENGTH), target, memory, Sampling(uniform))
    torch.testing.assert_close(drawn.probs.sum(dim=-1), torch.ones(BATCH, tiny.G))
    for row in range(BATCH):
        for step, token in enumerate(drawn.tokens[row]):
            ladder = drawn.probs[row, step].double().cumsum(0)
            assert ladder[token] > uniform[row, step] * ladder[-1] >= (ladder[token - 1] if token else 0)
