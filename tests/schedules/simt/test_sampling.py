"""Sampling on Vulkan devices, against the operators, which say what is right."""

from typing import Any

import numpy as np
import pytest
import torch

from dspark_compiler.graph import sampling_ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.simt.accept import accept
from dspark_compiler.schedules.simt.draw import draw
from dspark_compiler.schedules.simt.token_probs import token_probs
from tests.backends.vulkan.shaders import compiled, shaders_of, validate
from tests.schedules.test_accept import blocks, distributions, places, verdict
from tests.schedules.test_token_probs import KNOBS
from tests.vulkan.device import messages, need_vulkan

dspark = torch.ops.dspark


@pytest.fixture(autouse=True)
def _valid() -> Any:
    need_vulkan()
    yield
    assert messages() == []


def expected(name: str, arrays: list[np.ndarray]) -> Any:
    return getattr(dspark, name)(*(torch.from_numpy(array) for array in arrays))


def anything(shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, -(2**40), np.int64)


@pytest.mark.parametrize("vocab", [1, 4177])
def test_probabilities(vocab: int) -> None:
    function, workspaces = token_probs("main", len(KNOBS), 2, vocab)
    for shader in shaders_of({"main": function}):
        validate(shader)
    call, random = compiled(function), np.random.default_rng(vocab)
    temperature, top_k, top_p, min_p = zip(*KNOBS, strict=True)
    knobs = [np.array(temperature, np.float32), np.array(top_k, np.int32)]
    knobs += [np.array(top_p, np.float32), np.array(min_p, np.float32)]
    for ties in (False, True):
        logits = (random.standard_normal((len(KNOBS), 2, vocab)) * 4).astype(np.float32)
        logits = np.round(logits) if ties else logits
        rest = [np.full(arg.shape, -7, arg.dtype) for arg in workspaces]
        out = call(logits, *knobs, np.full(logits.shape, np.nan, np.float32), *rest)[5]
        right = expected("token_probs", [logits, *knobs]).numpy()
        np.testing.assert_array_equal(out > 0, right > 0)
        # Devices may be off by 3 + 2|x| units in the last place of exp(x).
        np.testing.assert_allclose(out, right, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("vocab", [1, 4097])
def test_draws(vocab: int) -> None:
    function, workspace = draw("main", 64, vocab)
    for shader in shaders_of({"main": function}):
        validate(shader)
    call, uniform = compiled(function), np.random.default_rng(vocab).random(64, dtype=np.float32)
    uniform[:3] = (0, np.nextafter(np.float32(1), np.float32(0)), 0.5)
    for sparse in (False, True):
        probs = distributions(64, vocab, sparse=sparse)
        out = call(probs, uniform, np.full(64, -7, np.int64), anything(workspace))[2]
        np.testing.assert_array_equal(out, expected("draw", [probs, uniform]).numpy())


@pytest.mark.parametrize("extra", [None, -1, 2])
def test_accepts(extra: int | None) -> None:
    batch, width, vocab = 6, 5, 5000
    certain = extra is None
    function, workspace = accept("main", batch, width, vocab, drafts=0 if certain else width + extra)
    for shader in shaders_of({"main": function}):
        validate(shader)
    call, seen = compiled(function), set()
    for seed in range(4):
        *arrays, drafts = blocks(batch, width, vocab, extra or 0, seed=seed, sparse=seed % 2 == 1)
        if certain:
            arrays[0][:, 1:] = arrays[1][:, :-1].argmax(-1)
        else:
            arrays += [drafts]
        found = call(*arrays, *verdict(batch), anything(workspace))[len(arrays) : -1]
        for mine, right in zip(found, expected("accept", arrays), strict=True):
            np.testing.assert_array_equal(mine, right.numpy())
        seen |= set(found[0])
    assert len(seen) > 3 - certain


def test_without_drafts_the_target_decides() -> None:
    probs, count = distributions(3, 5000, sparse=False)[:, None], np.zeros(3, np.int32)
    uniform = np.array([[0.1], [0.5], [0.9]], np.float32)
    arrays = [np.array([[7], [8], [9]]), probs, count, uniform, *places(3)]
    function, workspace = accept("main", 3, 1, 5000, drafts=0)
    found = compiled(function)(*arrays, *verdict(3), anything(workspace))[len(arrays) : -1]
    for mine, right in zip(found, expected("accept", arrays), strict=True):
        np.testing.assert_array_equal(mine, right.numpy())


def test_where_rounding_alone_rejects_the_target_decides() -> None:
    target = np.array([[[0.5, 0.25, 0.125], [1, 0, 0]]], np.float32)
    draft = np.array([[[0.75, 0.25, 0.125]]], np.float32)
    arrays = [np.array([[7, 0]]), target, np.ones(1, np.int32), np.array([[0.9, 0.7]], np.float32), *places(1), draft]
    function, workspace = accept("main", 1, 2, 3, drafts=1)
    found = compiled(function)(*arrays, *verdict(1), anything(workspace))
    assert [int(values[0]) for values in found[len(arrays) : len(arrays) + 2]] == [1, 1]


def test_tokens_come_as_often_as_they_should() -> None:
    need = 2000
    probs = distributions(1, 12).repeat(need, axis=0)
    function, workspace = draw("main", need, 12)
    uniform = np.random.default_rng(5).random(need, dtype=np.float32)
    out = compiled(function)(probs, uniform, np.zeros(need, np.int64), anything(workspace))[2]
    found = np.bincount(out, minlength=12) / need
    # Five standard deviations.
    assert (np.abs(found - probs[0]) <= 5 * np.sqrt(probs[0] * (1 - probs[0]) / need) + 1e-9).all()
