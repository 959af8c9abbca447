"""Logits of a drafted token by its predecessor, against torch."""

from typing import Any

import numpy as np
import pytest

from dspark_compiler.schedules.simt.awaited import NOTHING
from dspark_compiler.schedules.simt.layouts import RowLayouts
from dspark_compiler.schedules.simt.sequential_head import HeadShape, sequential_head
from dspark_compiler.schedules.simt.vocabulary import VocabularyCut
from tests.backends.vulkan.shaders import compiled, shaders_of, validate
from tests.vulkan.device import messages, need_vulkan


@pytest.fixture(autouse=True)
def _valid() -> Any:
    need_vulkan()
    yield
    assert messages() == []


@pytest.mark.parametrize(
    ("vocab", "rank", "dtype", "packed", "follows"),
    [(2064, 32, "float16", False, True), (1007, 6, "float32", False, False), (1040, 16, "float16", True, True)],
)
def test_logits_and_what_is_told_of_chunks(vocab: int, rank: int, dtype: str, packed: bool, follows: bool) -> None:
    batch, block, random = 2, 3, np.random.default_rng(vocab)
    shape = HeadShape(batch, block, vocab, rank, dtype, dtype, packed)
    assert shape.fits
    function = sequential_head("head", shape, follows=follows, awaits=follows)
    for shader in shaders_of({"main": function}):
        validate(shader)
    first, second = (random.standard_normal((vocab, rank)).astype(dtype) for _ in range(2))
    base = random.standard_normal((batch * block, vocab)).astype(np.float32)
    tokens, layouts = np.array([vocab - 1, 5]), RowLayouts(dtype)
    given = [tokens.astype(np.float32 if follows else np.int64), layouts.pack(first) if packed else first]
    given += [layouts.pack(second), base, np.array([1], np.int32), np.array([0, 0.7], np.float32)]
    count = VocabularyCut(vocab).count
    nothing = [np.full(size, NOTHING, np.uint32).view(np.float32) for size in ((batch, vocab), (batch, count, 4))]
    *_, logits, stats, row = compiled(function)(*given, *nothing, np.zeros((batch, rank), np.float32))
    right = base.reshape(batch, block, vocab)[:, 1] + first[tokens].astype(np.float32) @ second.astype(np.float32).T
    np.testing.assert_allclose(logits, right, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(row, first[tokens].astype(np.float32))
    size = VocabularyCut(vocab).size
    for chunk in range(count):
        part = logits[:, chunk * size : (chunk + 1) * size]
        np.testing.assert_array_equal(stats[:, chunk, 0], part.max(1))
        np.testing.assert_array_equal(stats[:, chunk, 1], part.argmax(1) + chunk * size)
        weights = np.exp((part[1] - part[1].max()) / np.float32(0.7))
        np.testing.assert_allclose(stats[1, chunk, 2], weights.sum(), rtol=1e-5)


def test_a_rank_that_a_thread_cannot_hold() -> None:
    assert not HeadShape(1, 7, 151936, 256, "float16", "float16").fits
