"""Blocks of a batch in one pass: each hidden state is that of drafting, and no block sees what it must not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dspark_compiler.frontend.source import open_source
from dspark_compiler.models.drafters.dspark import DSparkDrafter
from dspark_compiler.models.drafters.layers import masked_attention
from dspark_compiler.models.drafters.sequential import HEADS
from dspark_compiler.training.heads.anchors import Batch, Sequences, block_mask, make_batch
from dspark_compiler.training.heads.blocks import block_hidden, judge_blocks
from dspark_compiler.training.heads.drafter import begin, drafter_config
from dspark_compiler.training.heads.options import DrafterOptions
from dspark_compiler.training.heads.target import FrozenTarget

SLOTS = 4


def make_drafter(model: Path, target: FrozenTarget, **options: object) -> DSparkDrafter:
    chosen = DrafterOptions(block_size=SLOTS, markov_rank=5, **options)
    drafter = DSparkDrafter(drafter_config(open_source(str(model)), chosen, model / "tokenizer.json"))
    begin(drafter, target, chosen, 1)
    for parameter in drafter.markov_head.parameters() if drafter.markov_head else ():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    return drafter


def make_sequences(count: int = 3) -> Sequences:
    ids = torch.randint(97, 120, (count, 24), generator=torch.Generator().manual_seed(8))
    return Sequences(ids, torch.tensor([5, 3, 9]), torch.tensor([24, 12, 11]), torch.arange(count))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class WholeMemory:
    """The rows of all confirmed tokens of one sequence, kept as they are."""

    def __init__(self) -> None:
        self.rows: dict[str, Tensor] = {}

    def write(self, name: str, rows: Tensor) -> None:
        self.rows[name] = rows

    def last(self, name: str) -> Tensor:
        return self.rows[name][:, :, -1:]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        keys = torch.cat([self.rows[f"k.{layer}"], k], dim=2)
        values = torch.cat([self.rows[f"v.{layer}"], v], dim=2)
        mask = torch.ones(1, 1, q.shape[2], keys.shape[2], dtype=torch.bool)
        return masked_attention(q, keys, values, mask, scale)


@pytest.mark.parametrize("head", list(HEADS))
def test_training_sees_what_drafting_sees(model: Path, target: FrozenTarget, head: str) -> None:
    """For each block: the same logits as drafting from its anchor with the tokens before it in memory, if the drafted
    tokens are those of the sequence; and slot j's target distribution and token are those of position a + j + 1.
    """
    drafter = make_drafter(model, target, head_type=head)
    batch = make_batch(make_sequences(), 3, SLOTS, torch.Generator().manual_seed(2))
    taps, final = target.read(batch.ids, drafter.config.target_layer_ids)
    with torch.no_grad():
        hidden = block_hidden(drafter, taps, target.embed(drafter.block_ids(batch.tokens(0)[..., 0])), batch)
        latents, confidence = drafter.teacher_forced(hidden, batch.tokens(0))
        logits = target.logits(hidden.flatten(0, 2)).view(*hidden.shape[:3], -1) + drafter.markov_head.bias(latents)
        outcome = judge_blocks(drafter, target, batch, 4.0)
    seen = 0
    for row, block in batch.valid[..., -1].nonzero().tolist():
        start = int(batch.anchor[row, block])
        ids = batch.ids[row : row + 1]
        memory, drawn = WholeMemory(), []

        def sample(step: int, scores: Tensor, ids=ids, start=start, drawn=drawn) -> tuple[Tensor, Tensor]:
            drawn.append(scores)
            return ids[:, start + step + 1], scores.softmax(-1)

        with torch.no_grad():
            before = [tap[row : row + 1, :start] for tap in taps]
            drafter.remember(before, None, ids[:, :start], torch.arange(start)[None], target, memory)
            draft = drafter.draft(ids[:, start], torch.tensor([start]), target, memory, sample)
            wanted = target.logits(final[row, start : start + SLOTS]).softmax(-1)
        torch.testing.assert_close(torch.stack(drawn, dim=1)[0], logits[row, block], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(draft.confidence[0], confidence[row, block], rtol=1e-4, atol=1e-4)
        distance = (draft.probs[0] - wanted).abs().sum(-1)
        torch.testing.assert_close(outcome.distance[row, block], distance, rtol=1e-4, atol=1e-4)
        assert batch.tokens(1)[row, block].tolist() == ids[0, start + 1 : start + 1 + SLOTS].tolist()
        seen += 1
    assert seen >= 3


def test_anchors_lie_in_what_the_target_wrote() -> None:
    sequences = make_sequences()
    for seed in range(30):
        batch = make_batch(sequences, 6, SLOTS, torch.Generator().manual_seed(seed))
        for row in range(len(sequences)):
            used = batch.valid[row, :, 0]
            anchors = batch.anchor[row][used].tolist()
            assert len(set(anchors)) == len(anchors)
            assert all(sequences.prompt[row] <= a <= sequences.length[row] - 2 for a in anchors)
            room = (sequences.length[row] - 1 - batch.anchor[row]).clamp(max=SLOTS)
            assert torch.equal(batch.valid[row].sum(-1)[used], room[used])
            # Valid slots are a prefix.
            assert torch.equal(batch.valid[row].cumprod(-1).bool(), batch.valid[row])
    assert batch.valid[2, :, 0].sum() == 1  # of the last sequence only one token can be an anchor
    assert torch.equal(batch.valid.flatten()[batch.chosen], torch.ones(len(batch.chosen), dtype=torch.bool))


def test_a_block_sees_the_tokens_before_its_anchor_and_itself() -> None:
    mask = block_mask(torch.tensor([[2, 0]]), 5, 3)[0, 0]
    assert (
        mask.tolist()
        == [
            [*[True, True, False, False, False], *[True, True, True, False, False, False]],
        ]
        * 3
        + [
            [*[False] * 5, *[False, False, False, True, True, True]],
        ]
        * 3
    )


def test_what_pads_and_what_follows_changes_nothing(model: Path, target: FrozenTarget) -> None:
    drafter = make_drafter(model, target)
    sequences = make_sequences()
    batch = make_batch(sequences, 2, SLOTS, torch.Generator().manual_seed(1))
    other = batch.ids.clone()
    other[1, 12:] = 99  # behind the end of the second sequence
    with torch.no_grad():
        first = judge_blocks(drafter, target, batch, 4.0)
        second = judge_blocks(drafter, target, Batch(other, batch.anchor, batch.valid, batch.chosen), 4.0)
    assert torch.equal(first.distance, second.distance)
    assert torch.equal(first.loss, second.loss)


def test_a_target_in_bfloat16(model: Path, target: FrozenTarget) -> None:
    """What a GPU computes with: gradients of all weights, close to those of float32."""
    drafter = make_drafter(model, target)
    small = FrozenTarget(open_source(str(model)), torch.device("cpu"), torch.bfloat16)
    batch = make_batch(make_sequences(), 3, SLOTS, torch.Generator().manual_seed(2))
    gradients = []
    for read in (target, small):
        outcome = judge_blocks(drafter, read, batch, 4.0)
        found = torch.autograd.grad(outcome.loss, list(drafter.parameters()))
        assert all(gradient.dtype is torch.float32 for gradient in found)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.9
