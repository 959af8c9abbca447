"""The DSpark drafter against numpy (oracle.py), its rotary positions against transformers'."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextConfig, Gemma4TextRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from dspark_compiler.models.drafters.config import DrafterConfig
from dspark_compiler.models.drafters.dspark import DSparkDrafter
from dspark_compiler.models.drafters.layers import Rotary
from tests.models.drafters import tiny
from tests.models.drafters.oracle import Oracle
from tests.models.drafters.torch_memory import Plain, TorchMemory, greedy

CONTEXT = 9
NAMES = ["rnn", "gated", "vanilla", "dflash", "gemma4"]


@pytest.mark.parametrize("name", NAMES)
def test_a_block_is_the_papers(name: str) -> None:
    drafter = tiny.drafter(name)
    config = drafter.config
    target = Plain(config)
    taps = [torch.randn(1, CONTEXT, tiny.D, generator=torch.Generator().manual_seed(i)) for i in (1, 2, 3)]
    memory = TorchMemory(drafter, 1, 5)
    positions = torch.arange(CONTEXT)[None]
    drafter.remember(taps, None, positions, positions, target, memory)
    memory.confirm(CONTEXT)
    logits = []

    def sample(step: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        assert step == len(logits)
        logits.append(scores[0].double().numpy())
        return greedy(step, scores)

    anchor = 11
    draft = drafter.draft(torch.tensor([anchor]), torch.tensor([CONTEXT]), target, memory, sample)

    oracle = Oracle(config, {key: value.double().numpy() for key, value in drafter.state_dict().items()})
    embedding, head = target.embedding.double().numpy(), target.head.double().numpy()
    block = embedding[[anchor, *[config.mask_token_id] * (config.block_size - 1)]]
    hidden = oracle.hidden(torch.cat(taps, dim=-1)[0].double().numpy(), block)
    state, previous = np.zeros(config.markov_rank), anchor
    for k in range(config.block_size):
        state, bias, features = oracle.step(state, hidden[k], previous)
        np.testing.assert_allclose(logits[k], head @ hidden[k] + bias, rtol=1e-4, atol=1e-4)
        previous = int(logits[k].argmax())
        assert draft.tokens[0, k] == previous
        if draft.confidence is not None:
            assert float(draft.confidence[0, k]) == pytest.approx(oracle.confidence(features), rel=1e-4, abs=1e-4)
    assert (draft.confidence is not None) == config.enable_confidence_head


@pytest.mark.parametrize("name", NAMES)
def test_training_sees_what_drafting_does(name: str) -> None:
    drafter = tiny.drafter(name)
    assert isinstance(drafter, DSparkDrafter)
    hidden = torch.randn(2, tiny.G, tiny.D, generator=torch.Generator().manual_seed(4))
    logits = torch.randn(2, tiny.G, tiny.V, generator=torch.Generator().manual_seed(5))
    seen = []

    def sample(step: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(scores)
        return greedy(step, scores)

    anchor = torch.tensor([7, 30])
    draft = drafter.sample_block(hidden, logits, anchor, sample)
    previous = torch.cat([anchor[:, None], draft.tokens[:, :-1]], dim=1)
    latents, confidence = drafter.teacher_forced(hidden, previous)
    forced = logits if latents is None or drafter.markov_head is None else logits + drafter.markov_head.bias(latents)
    torch.testing.assert_close(torch.stack(seen, dim=1), forced)
    if draft.confidence is None:
        assert confidence is None
    else:
        torch.testing.assert_close(draft.confidence, confidence)


_YARN = {"rope_type": "yarn", "rope_theta": 1e5, "factor": 4.0, "original_max_position_embeddings": 32}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 1e5}, _YARN, _LLAMA3])
def test_positions_turn_as_the_targets_do(rope: dict[str, Any]) -> None:
    positions = torch.arange(40)[None]
    settings = Qwen3Config(head_dim=8, num_attention_heads=4, max_position_embeddings=128, rope_parameters=dict(rope))
    expected = Qwen3RotaryEmbedding(settings)(torch.zeros(1), positions)
    config: DrafterConfig = replace(tiny.DSPARK, rope=rope | {"max_position_embeddings": 128})
    for got, want in zip(Rotary(config)(positions), expected, strict=True):
        torch.testing.assert_close(got[:, 0], want)


def test_gemma4_turns_part_of_a_head() -> None:
    rope = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
    settings = Gemma4TextConfig(
        head_dim=8,
        global_head_dim=16,
        num_hidden_layers=1,
        layer_types=["full_attention"],
        rope_parameters={"full_attention": dict(rope)},
    )
    positions = torch.arange(40)[None]
    expected = Gemma4TextRotaryEmbedding(settings)(torch.zeros(1), positions, "full_attention")
    for got, want in zip(Rotary(replace(tiny.DSPARK, head_dim=16, rope=rope))(positions), expected, strict=True):
        torch.testing.assert_close(got[:, 0], want)
