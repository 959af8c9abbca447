"""Sampling on Nvidia GPUs: against the operators, which say what is right, and what the compiler makes of it."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from dspark_compiler.graph import sampling_ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.cuda.accept import accept
from dspark_compiler.schedules.cuda.draw import draw
from dspark_compiler.schedules.cuda.token_probs import drawn_probs, token_probs
from tests.schedules.cuda.gpu import call, compile_for, gpu, report_of
from tests.schedules.test_accept import blocks, one_hot, places, verdict
from tests.schedules.test_token_probs import KNOBS

ARCH = "sm_90a"
dspark = torch.ops.dspark


@cache
def compiled(build: Any, *sizes: int, **options: int) -> Any:
    gpu()
    return compile_for({"kernel": build("kernel", *sizes, **options)}, ARCH)["kernel"]


def distributions(*shape: int, sparse: bool = False) -> np.ndarray:
    random = np.random.default_rng()
    weights = np.exp(random.standard_normal(shape, dtype=np.float32) * 2)
    if sparse:
        weights *= random.random(shape) < 0.1
        weights[..., shape[-1] // 2] += np.float32(0.1)
    return weights / weights.sum(-1, keepdims=True)


def test_rows_stay_in_registers() -> None:
    functions = {
        "probs": token_probs("probs", 1, 8, 50000),
        "draw": draw("draw", 1, 50000),
        "drawn": drawn_probs("drawn", 1, 50000, 7),
        "accept": accept("accept", 1, 8, 50000, drafts=7),
    }
    report = report_of(functions, ARCH)
    assert report.kernels == len(functions)
    assert not report.spills


@pytest.mark.parametrize("vocab", [1, 8, 77, 1000, 49152])
@pytest.mark.parametrize("ties", [False, True])
def test_probabilities(vocab: int, ties: bool) -> None:
    random = np.random.default_rng()
    logits = (random.standard_normal((len(KNOBS), 2, vocab)) * 4).astype(np.float32)
    logits = np.round(logits) if ties else logits
    temperature, top_k, top_p, min_p = zip(*KNOBS, strict=True)
    arrays = [logits, np.array(temperature, np.float32), np.array(top_k, np.int32)]
    arrays += [np.array(top_p, np.float32), np.array(min_p, np.float32)]
    kernel = compiled(token_probs, len(KNOBS), 2, vocab)
    (out,) = call(kernel, [*arrays, np.full(logits.shape, 7, np.float32)])
    expected = dspark.token_probs(*(torch.from_numpy(array) for array in arrays)).numpy()
    np.testing.assert_array_equal(out > 0, expected > 0)
    np.testing.assert_allclose(out, expected, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("vocab", [1, 8, 512, 513, 50000])
@pytest.mark.parametrize("sparse", [False, True])
def test_draws(vocab: int, sparse: bool) -> None:
    probs, uniform = distributions(64, vocab, sparse=sparse), np.random.default_rng().random(64, dtype=np.float32)
    uniform[:3] = (0, np.nextafter(np.float32(1), np.float32(0)), 0.5)
    (out,) = call(compiled(draw, 64, vocab), [probs, uniform, np.full(64, -7, np.int64)])
    np.testing.assert_array_equal(out, dspark.draw(torch.from_numpy(probs), torch.from_numpy(uniform)).numpy())


@pytest.mark.parametrize("vocab", [8, 1000, 49152])
def test_a_draw_at_once_is_the_one_afterwards(vocab: int) -> None:
    random = np.random.default_rng()
    logits = np.round(random.standard_normal((len(KNOBS), 1, vocab)) * 4).astype(np.float32)
    temperature, top_k, top_p, min_p = zip(*KNOBS, strict=True)
    knobs = [np.array(temperature, np.float32), np.array(top_k, np.int32)]
    knobs += [np.array(top_p, np.float32), np.array(min_p, np.float32)]
    (probs,) = call(compiled(token_probs, len(KNOBS), 1, vocab), [logits, *knobs, np.zeros_like(logits)])
    uniform, kernel = random.random((len(KNOBS), 3), dtype=np.float32), compiled(drawn_probs, len(KNOBS), vocab, 3)
    for column in range(3):
        number = np.ascontiguousarray(uniform[:, column])
        (expected,) = call(compiled(draw, len(KNOBS), vocab), [probs[:, 0], number, np.full(len(KNOBS), -7, np.int64)])
        given = [logits, *knobs, uniform, np.array([column], np.int32), np.zeros_like(logits)]
        found = call(kernel, [*given, np.full(len(KNOBS), -7, np.int64)], 2)
        np.testing.assert_array_equal(found[0], probs)
        np.testing.assert_array_equal(found[1], expected)


@pytest.mark.parametrize("extra", [-1, 0, 2])
@pytest.mark.parametrize("certain", [False, True])
@pytest.mark.parametrize("vocab", [700, 49152])
def test_accepts(extra: int, certain: bool, vocab: int) -> None:
    batch, width, seen = 8, 5, set()
    kernel = compiled(accept, batch, width, vocab, drafts=0 if certain else width + extra)
    for seed in range(4):
        *arrays, drafts = blocks(batch, width, vocab, extra, seed=seed, sparse=seed % 2 == 1)
        if certain:
            arrays[0][:, 1:] = arrays[1][:, :-1].argmax(-1)
        else:
            arrays += [drafts]
        found = call(kernel, [*arrays, *verdict(batch)], 4)
        expected = dspark.accept(*(torch.from_numpy(array) for array in arrays))
        for mine, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine, right.numpy())
        seen |= set(found[0])
    assert len(seen) > 3 - certain


def test_greedy_accepts_what_the_target_says() -> None:
    tokens, said = np.array([[9, 1, 2, 3], [9, 1, 5, 3]]), np.array([[1, 2, 3, 4], [1, 2, 3, 4]])
    arrays = [tokens, one_hot(said, 20), np.full(2, 3, np.int32), np.full((2, 4), np.float32(0.7)), *places(2)]
    found = call(compiled(accept, 2, 4, 20, drafts=3), [*arrays, one_hot(tokens[:, 1:], 20), *verdict(2)], 4)
    assert [list(values) for values in found[:2]] == [[4, 2], [4, 2]]


def test_where_rounding_alone_rejects_the_target_decides() -> None:
    target = np.array([[[0.5, 0.25, 0.125], [1, 0, 0]]], np.float32)
    draft = np.array([[[0.75, 0.25, 0.125]]], np.float32)
    arrays = [np.array([[7, 0]]), target, np.ones(1, np.int32), np.array([[0.9, 0.7]], np.float32), *places(1)]
    found = call(compiled(accept, 1, 2, 3, drafts=1), [*arrays, draft, *verdict(1)], 4)
    assert [int(values[0]) for values in found[:2]] == [1, 1]
