"""Draws and acceptance, against the reference operators and against the distributions they promise."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from dspark_compiler.graph import sampling_ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.accept import accept
from dspark_compiler.schedules.draw import draw
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.token_probs import token_probs
from tests.schedules.kernels import MACHINES, WIDEST, build, normal

dspark = torch.ops.dspark
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def distributions(*shape: int, seed: int = 0, sparse: bool = False) -> np.ndarray:
    """Random float32 distributions along the last axis, many of whose entries are 0 where ``sparse``."""
    weights = np.exp(normal(*shape, seed=seed) * 2)
    if sparse:
        weights *= np.random.default_rng(seed).random(shape) < 0.1
        weights[..., shape[-1] // 2] += 0.1
    return weights / weights.sum(-1, keepdims=True)


def one_hot(tokens: np.ndarray, vocab: int) -> np.ndarray:
    return np.eye(vocab, dtype=np.float32)[tokens]


def drawn(probs: np.ndarray, uniform: np.ndarray, isa: VectorIsa = WIDEST) -> np.ndarray:
    out = np.full(len(probs), -7, np.int64)
    _draw(*probs.shape, isa)(probs, uniform, out)
    return out


@cache
def _draw(batch: int, vocab: int, isa: VectorIsa) -> Callable[..., None]:
    return build(draw("draw", batch, vocab, isa), isa)


@cache
def _accept(batch: int, width: int, vocab: int, drafts: int, isa: VectorIsa) -> Callable[..., None]:
    return build(accept("accept", batch, width, vocab, isa, drafts=drafts), isa)


def accepted(
    tokens: np.ndarray,
    probs: np.ndarray,
    count: list[int],
    uniform: np.ndarray,
    draft_probs: np.ndarray | None = None,
    isa: VectorIsa = WIDEST,
) -> tuple[list[int], list[int]]:
    """What the kernel accepts and the token that follows, which must be the operator's."""
    batch, width, vocab = probs.shape
    arrays = [tokens, probs, np.array(count, np.int32), uniform.astype(np.float32), *places(batch)]
    arrays += [] if draft_probs is None else [draft_probs]
    found = verdict(batch)
    drafts = 0 if draft_probs is None else draft_probs.shape[1]
    _accept(batch, width, vocab, drafts, isa)(*arrays, *found)
    expected = dspark.accept(*(torch.from_numpy(array) for array in arrays))
    for mine, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, right.numpy())
    accepted, following, position, length = found
    np.testing.assert_array_equal(position - arrays[4], accepted)
    np.testing.assert_array_equal(length - arrays[5], accepted)
    return list(accepted - 1), list(following)


def places(batch: int) -> list[np.ndarray]:
    """Where anchors are: positions and lengths, some beyond 32 bits."""
    return [np.arange(batch) + 2**40, 100 + np.arange(batch, dtype=np.int32)]


def verdict(batch: int) -> list[np.ndarray]:
    """What accept fills."""
    return [np.full(batch, -7, dtype) for dtype in (np.int32, np.int64, np.int64, np.int32)]


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("vocab", [1, 8, 500, 512, 513, 3000])
@pytest.mark.parametrize("sparse", [False, True])
def test_draws(isa: VectorIsa, vocab: int, sparse: bool) -> None:
    probs = distributions(64, vocab, sparse=sparse)
    uniform = np.random.default_rng(1).random(64, dtype=np.float32)
    uniform[:3] = (0, BELOW_ONE, 0.5)
    out = drawn(probs, uniform, isa)
    np.testing.assert_array_equal(out, dspark.draw(torch.from_numpy(probs), torch.from_numpy(uniform)).numpy())
    assert (probs[np.arange(64), out] > 0).all()


@pytest.mark.parametrize("token", [0, 511, 512, 1199])
@pytest.mark.parametrize("uniform", [0.0, 0.5, BELOW_ONE])
def test_a_certain_token_is_drawn(token: int, uniform: float) -> None:
    assert drawn(one_hot(np.array([token]), 1200), np.array([uniform], np.float32)) == [token]


def test_a_number_at_a_step_draws_the_token_after_it() -> None:
    probs = np.array([[0.25, 0.25, 0, 0.5, 0]] * 4, np.float32)
    assert list(drawn(probs, np.array([0.25, 0.5, 0, 0.75], np.float32))) == [1, 3, 0, 3]
    flat = np.full((2, 1024), 1 / 1024, np.float32)
    assert list(drawn(flat, np.array([0.5, 511 / 1024], np.float32))) == [512, 511]


def test_a_number_rounded_up_to_1_draws_the_last_token_there_is() -> None:
    probs = np.zeros((1, 1200), np.float32)
    probs[0, [3, 700]] = 0.5
    assert drawn(probs, np.ones(1, np.float32)) == [700]


def test_draws_have_the_distribution_they_are_drawn_from() -> None:
    draws, vocab = 100_000, 8
    logits = np.broadcast_to(normal(vocab), (1, 1, vocab)).copy()
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    probs = np.zeros((1, 1, vocab), np.float32)
    kernel = build(token_probs("probs", 1, 1, vocab, WIDEST))
    kernel(logits, one * np.float32(1.5), np.zeros(1, np.int32), one, zero, probs)
    uniform = np.random.default_rng(5).random(draws, dtype=np.float32)
    counts = np.bincount(drawn(np.repeat(probs[0], draws, axis=0), uniform), minlength=vocab)
    weights = np.exp(logits[0, 0] / 1.5)
    expected = weights / weights.sum() * draws
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi-square, 7 degrees of freedom: p = 0.001


def blocks(batch: int, width: int, vocab: int, extra: int, *, seed: int, sparse: bool = False) -> list[np.ndarray]:
    """Tokens, target, counts, numbers and places of blocks as ``dspark.accept`` takes them, and what drew the drafts.

    Drafters are near enough that blocks end anywhere, and low numbers make those longer that only R_i decides.
    """
    rng = np.random.default_rng(seed)
    logits, noise = 2 * normal(batch, width, vocab, seed=seed), normal(batch, width + extra, vocab, seed=seed + 1)
    shared = np.pad(logits, ((0, 0), (0, max(extra, 0)), (0, 0)))[:, : width + extra]
    live = rng.random((2, vocab)) < (0.3 if sparse else 1.0)
    live[:, vocab // 2] = True
    probs, drafts = (
        weights / weights.sum(-1, keepdims=True)
        for weights in (np.exp(logits) * live[0], np.exp(shared + 0.5 * noise) * (live[0] | live[1]))
    )
    tokens = rng.integers(0, vocab, (batch, width))
    for row, i in np.ndindex(batch, width - 1):
        tokens[row, i + 1] = rng.choice(vocab, p=drafts[row, i].astype(float) / drafts[row, i].sum(dtype=float))
    uniform = (rng.random((batch, width)) ** 1.5).astype(np.float32)
    return [
        tokens,
        probs.astype(np.float32),
        rng.integers(-1, width, batch).astype(np.int32),
        uniform,
        *places(batch),
        drafts.astype(np.float32),
    ]


@pytest.mark.parametrize("isa", MACHINES)
@pytest.mark.parametrize("vocab", [8, 700])
@pytest.mark.parametrize("extra", [-1, 0, 2])
def test_accepts(isa: VectorIsa, vocab: int, extra: int) -> None:
    seen = set()
    for seed in range(20):
        tokens, probs, count, uniform, *_, drafts = blocks(2, 5, vocab, extra, seed=seed, sparse=seed % 2 == 1)
        kept, _ = accepted(tokens, probs, list(count), uniform, drafts, isa)
        seen |= set(kept)
        tokens[:, 1:] = probs[:, :-1].argmax(-1)
        accepted(tokens, probs, list(count), uniform, None, isa)
    assert seen >= {-1, 0, 1, 2}


def test_greedy_accepts_what_the_target_says() -> None:
    tokens, said = np.array([[9, 1, 2, 3], [9, 1, 5, 3]]), np.array([[1, 2, 3, 4], [1, 2, 3, 4]])
    uniform, probs, drafts = np.full((2, 4), 0.7), one_hot(said, 20), one_hot(tokens[:, 1:], 20)
    assert accepted(tokens, probs, [3, 3], uniform, drafts) == ([3, 1], [4, 2])
    assert accepted(tokens, probs, [3, 3], uniform) == ([3, 1], [4, 2])
    assert accepted(tokens, probs, [2, 0], uniform, drafts) == ([2, 0], [3, 1])


@pytest.mark.parametrize("isa", MACHINES)
def test_nothing_is_accepted_of_a_sequence_left_alone(isa: VectorIsa) -> None:
    tokens, said = np.array([[9, 1, 2], [9, 1, 2]]), np.array([[1, 2, 3], [1, 2, 3]])
    kept, _ = accepted(tokens, one_hot(said, 20), [-1, 0], np.full((2, 3), 0.7), one_hot(tokens[:, 1:], 20), isa)
    assert kept == [-1, 0]


def test_a_draft_from_the_targets_own_distribution_stays() -> None:
    probs = distributions(2, 4, 700)
    tokens = np.array([[0, 4, 99, 699], [0, 1, 2, 3]])
    kept, _ = accepted(tokens, probs, [3, 3], np.full((2, 4), BELOW_ONE), probs[:, :3].copy())
    assert kept == [3, 3]


def test_a_draft_stays_with_the_ratio_of_its_probabilities() -> None:
    target = np.array([[[0.25, 0.75, 0], [0, 0, 1]]], np.float32)
    draft = np.array([[[0.5, 0.5, 0]]], np.float32)
    for uniform, expected in ((0.49, ([1], [2])), (0.5, ([0], [1]))):
        assert accepted(np.array([[7, 0]]), target, [1], np.array([[uniform, 0.1]]), draft) == expected


def test_a_draft_that_others_follow_stays_with_what_is_left_behind_it() -> None:
    """r is 1, 1/2, 1/4, and R_1 is 1/4: both stay below 1/4, else the first below 1/3, and what follows it is 1."""
    target = np.array([[[0.25, 0.75], [0.5, 0.5], [1, 0]]], np.float32)
    draft = np.array([[[0.5, 0.5], [1, 0]]], np.float32)
    for first, second, expected in (
        (0.9, 0.24, ([2], [0])),
        (0.33, 0.25, ([1], [1])),
        (0.34, 0.25, ([0], [1])),
        (0.49, 0.9, ([0], [1])),
        (0.0, 0.25, ([1], [1])),
    ):
        found = accepted(np.array([[7, 0, 0]]), target, [2], np.array([[first, second, 0.5]]), draft)
        assert found == expected


def test_where_rounding_alone_rejects_the_target_decides() -> None:
    # No weight of the target is above the draft's, yet the token's own is below.
    target = np.array([[[0.5, 0.25, 0.125], [1, 0, 0]]], np.float32)
    draft = np.array([[[0.75, 0.25, 0.125]]], np.float32)
    assert accepted(np.array([[7, 0]]), target, [1], np.array([[0.9, 0.7]]), draft) == ([0], [1])


@pytest.mark.parametrize("certain", [False, True])
def test_what_comes_out_has_the_targets_distribution(certain: bool) -> None:
    """The first two tokens of 100,000 blocks of three drafts, of which the first says how many are looked at."""
    rows, vocab = 100_000, 4
    rng = np.random.default_rng(11)
    p, q = ((distributions(vocab, vocab, seed=seed) + np.float32(0.1)) / np.float32(1.4) for seed in (1, 2))
    ladder = np.cumsum(p, axis=1, dtype=float), np.cumsum(q, axis=1, dtype=float)

    def drawn_from(which: int, before: np.ndarray) -> np.ndarray:
        steps = ladder[which][before]
        return (rng.random((rows, 1)) * steps[:, -1:] >= steps).sum(1)

    tokens = np.zeros((rows, 4), np.int64)
    for i in range(3):
        tokens[:, i + 1] = (3, 2, 0)[i] if certain else drawn_from(1, tokens[:, i])
    count = np.where(tokens[:, 1] > 0, 3, 1).astype(np.int32)
    arrays = [tokens, p[tokens], count, rng.random((rows, 4), dtype=np.float32), *places(rows)]
    arrays += [] if certain else [q[tokens[:, :3]]]
    found = verdict(rows)
    build(accept("accept", rows, 4, vocab, WIDEST, drafts=0 if certain else 3))(*arrays, *found)
    kept, following = found[0] - 1, found[1]
    assert set(kept) == {0, 1, 2, 3}
    first = np.where(kept > 0, tokens[:, 1], following)
    second = np.where(kept > 1, tokens[:, 2], np.where(kept == 1, following, drawn_from(0, first)))
    counts = np.bincount(vocab * first + second, minlength=vocab**2).reshape(vocab, vocab)
    expected = p[0][:, None].astype(float) * p * rows
    assert ((counts - expected) ** 2 / expected).sum() < 37.7  # chi-square, 15 degrees of freedom: p = 0.001


def test_without_drafts_a_token_is_drawn() -> None:
    probs = distributions(2, 1, 700, seed=3)
    kept, following = accepted(np.array([[7], [8]]), probs, [0, -1], np.array([[0.3], [0.8]]))
    assert kept == [0, -1]
    np.testing.assert_array_equal(following, drawn(probs[:, 0], np.array([0.3, 0.8], np.float32)))
