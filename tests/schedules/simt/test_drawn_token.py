"""Tokens drawn by launches that await each other, against the operators, which say what is right."""

from typing import Any

import numpy as np
import pytest
import torch

from dspark_compiler.graph import sampling_ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.simt.awaited import NOTHING
from dspark_compiler.schedules.simt.chunk_stats import row_stats
from dspark_compiler.schedules.simt.drawn_token import draw_token, weigh_tokens
from dspark_compiler.schedules.simt.vocabulary import VocabularyCut
from tests.backends.vulkan.shaders import compiled, shaders_of, validate
from tests.schedules.test_token_probs import KNOBS
from tests.vulkan.device import messages, need_vulkan

dspark = torch.ops.dspark


@pytest.fixture(autouse=True)
def _valid() -> Any:
    need_vulkan()
    yield
    assert messages() == []


def nothing(*shape: int) -> np.ndarray:
    """Memory as a step finds it."""
    return np.full(shape, NOTHING, np.uint32).view(np.float32)


def draws(vocab: int, batch: int, *, awaits: bool) -> Any:
    """Logits [B,V], knobs and numbers [B,N] -> probabilities, tokens, and these as they are handed on."""
    functions = (
        row_stats("stats", batch, vocab, awaits=awaits),
        weigh_tokens("weigh", batch, vocab, awaits=awaits),
        draw_token("draw", batch, vocab, 3, awaits=awaits),
    )
    for function in functions:
        for shader in shaders_of({"main": function}):
            validate(shader)
    stats, weigh, draw = (compiled(function) for function in functions)
    count = VocabularyCut(vocab).count

    def call(logits: np.ndarray, knobs: list[np.ndarray], uniform: np.ndarray, column: int) -> list[np.ndarray]:
        found = stats(logits, knobs[0], nothing(batch, count, 4))[2]
        scores = np.full(logits.shape, np.nan, np.float32)
        *_, sums, rules, _ = weigh(logits, found, *knobs, nothing(batch, count, 2), nothing(batch, 4), scores)
        outs = (np.full_like(logits, -7), np.full(batch, -7, np.int64), nothing(batch))
        given = (logits, found, sums, rules, *knobs, uniform, np.array([column], np.int32))
        return draw(*given, *outs)[-3:]

    return call


@pytest.mark.parametrize(("vocab", "awaits"), [(1, True), (1021, True), (4180, True), (4180, False)])
def test_probabilities_and_tokens(vocab: int, awaits: bool) -> None:
    batch, random = len(KNOBS), np.random.default_rng(vocab)
    call = draws(vocab, batch, awaits=awaits)
    temperature, top_k, top_p, min_p = (np.array(each) for each in zip(*KNOBS, strict=True))
    knobs = [temperature.astype(np.float32), top_k.astype(np.int32), top_p.astype(np.float32), min_p.astype(np.float32)]
    same = []
    for ties in (False, True):
        logits = (random.standard_normal((batch, vocab)) * 4).astype(np.float32)
        logits = np.round(logits) if ties else logits
        for column in range(3):
            uniform = random.random((batch, 3), dtype=np.float32)
            uniform[:, 0] = 0
            uniform[:, 1] = np.nextafter(np.float32(1), np.float32(0))
            probs, tokens, drawn = call(logits, knobs, uniform, column)
            given = [torch.from_numpy(each) for each in (logits[:, None], *knobs)]
            right = dspark.token_probs(*given)[:, 0].numpy()
            np.testing.assert_array_equal(probs > 0, right > 0)
            np.testing.assert_allclose(probs, right, rtol=1e-5, atol=1e-30)
            np.testing.assert_array_equal(drawn, tokens)
            expected = dspark.draw(torch.from_numpy(right), torch.from_numpy(uniform[:, column].copy())).numpy()
            assert (right[np.arange(batch), tokens] > 0).all()
            same.append(tokens == expected)
    # A number may fall within rounding of where two tokens meet.
    assert np.mean(same) > 0.97


def test_tokens_come_as_often_as_they_should() -> None:
    need, vocab = 2000, 1200
    logits = np.full((need, vocab), -30, np.float32)
    logits[:, [3, 700, 1023, 1024, 1199]] = np.log(np.array([1, 2, 3, 4, 5], np.float32))
    uniform = np.random.default_rng(3).random((need, 3), dtype=np.float32)
    knobs = [np.ones(need, np.float32), np.zeros(need, np.int32), np.ones(need, np.float32), np.zeros(need, np.float32)]
    probs, tokens, _ = draws(vocab, need, awaits=True)(logits, knobs, uniform, 2)
    found = np.bincount(tokens, minlength=vocab) / need
    # Five standard deviations.
    assert (np.abs(found - probs[0]) <= 5 * np.sqrt(probs[0] * (1 - probs[0]) / need) + 1e-9).all()
