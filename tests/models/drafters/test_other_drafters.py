"""EAGLE-3 and Medusa against numpy (oracle.py)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.drafters import tiny
from tests.models.drafters.oracle import Oracle, sigmoid
from tests.models.drafters.torch_memory import Plain, TorchMemory, greedy

CONTEXT = 9


class Recorder:
    """A greedy Sampler that keeps the logits it is given."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def __call__(self, step: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        assert step == len(self.logits)
        self.logits.append(logits)
        return greedy(step, logits)


@pytest.mark.parametrize("name", ["eagle3", "eagle3-gemma4"])
def test_eagle3_reads_a_token_beside_the_feature_before_it(name: str) -> None:
    drafter = tiny.drafter(name)
    target, memory, sampler = Plain(drafter.config), TorchMemory(drafter, 1, 5), Recorder()
    taps = [torch.randn(1, CONTEXT, tiny.D, generator=torch.Generator().manual_seed(i)) for i in (1, 2, 3)]
    ids = torch.randint(0, tiny.V, (1, CONTEXT), generator=torch.Generator().manual_seed(4))
    for begin, end in ((0, 4), (4, 5), (5, CONTEXT)):
        piece = [tap[:, begin:end] for tap in taps]
        drafter.remember(piece, None, ids[:, begin:end], torch.arange(begin, end)[None], target, memory)
        memory.confirm(end - begin)
    anchor = 11
    drafter.draft(torch.tensor([anchor]), torch.tensor([CONTEXT]), target, memory, sampler)

    oracle = Oracle(drafter.config, {key: value.double().numpy() for key, value in drafter.state_dict().items()})
    features = oracle.linear(torch.cat(taps, dim=-1)[0].double().numpy(), "fc")
    embedding, head = target.embedding.double().numpy(), target.head.double().numpy()
    # The first token has no row; positions only matter by their differences.
    rows = [np.concatenate([embedding[int(token)], features[i]]) for i, token in enumerate(ids[0, 1:])]
    token, feature = anchor, features[-1]
    for logits in sampler.logits:
        rows.append(np.concatenate([embedding[token], feature]))
        feature = oracle.feature(np.stack(rows))
        expected = head @ oracle.norm(feature, "norm")
        np.testing.assert_allclose(logits[0].numpy(), expected, rtol=1e-4, atol=1e-4)
        token = int(expected.argmax())
    assert len(sampler.logits) == drafter.config.block_size


def test_medusa_heads_read_the_last_hidden_state() -> None:
    drafter = tiny.drafter("medusa")
    target, memory, sampler = Plain(drafter.config), TorchMemory(drafter, 1, 5), Recorder()
    final = torch.randn(1, CONTEXT, tiny.D, generator=torch.Generator().manual_seed(4))
    positions = torch.arange(CONTEXT)[None]
    drafter.remember([], final, positions, positions, target, memory)
    memory.confirm(CONTEXT - 2)
    drafter.draft(torch.tensor([3]), torch.tensor([CONTEXT - 2]), target, memory, sampler)
    weights = {key: value.double().numpy() for key, value in drafter.state_dict().items()}
    hidden = final[0, CONTEXT - 3].double().numpy()
    for k, logits in enumerate(sampler.logits):
        inner = weights[f"{k}.0.linear.weight"] @ hidden + weights[f"{k}.0.linear.bias"]
        expected = weights[f"{k}.1.weight"] @ (hidden + inner * sigmoid(inner))
        np.testing.assert_allclose(logits[0].numpy(), expected, rtol=1e-4, atol=1e-4)
