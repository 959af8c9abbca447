"""Norms, rotations, embeddings and the step from a projection to the cache on Vulkan devices."""

import numpy as np
import pytest

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm
from dspark_compiler.schedules.rope import RopeShape
from dspark_compiler.schedules.simt.kernels import simt_kernels
from dspark_compiler.schedules.simt.norm import layer_norm, rms_norm
from dspark_compiler.schedules.simt.qkv_prologue import Prologue, qkv_prologue
from dspark_compiler.schedules.simt.rows import packed_embedding
from tests.backends.vulkan.shaders import run
from tests.vulkan.device import need_vulkan

KERNELS = simt_kernels("float16")


@pytest.fixture(autouse=True)
def _device() -> None:
    need_vulkan()


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("depth", [12, 300])
def test_norms(depth: int) -> None:
    x, weight, bias = normal(3, depth), normal(depth), normal(1, depth)[0]
    found = run(rms_norm("main", 3, depth, 1e-5), x, weight, np.zeros_like(x))[-1]
    np.testing.assert_allclose(found, x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * weight, atol=1e-5)
    found = run(layer_norm("main", 3, depth, 1e-5), x, weight, bias, np.zeros_like(x))[-1]
    exact = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * weight + bias
    np.testing.assert_allclose(found, exact, atol=1e-5)


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    return x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin


def test_rope_reads_heads_out_of_a_projection() -> None:
    rows, heads, width, dim = 2, 3, 4, 8
    x, cos, sin = normal(rows * width, 40), normal(rows, 1, width, dim), normal(rows, 1, width, dim)[::-1].copy()
    shape = RopeShape(rows, heads, width, dim, x.shape, 10)
    found = run(KERNELS["rope"]("main", shape), x, cos, sin, np.zeros((rows, heads, width, dim), np.float32))[-1]
    split = x[:, 10:34].reshape(rows, width, heads, dim).swapaxes(1, 2)
    np.testing.assert_allclose(found, rotated(split, cos, sin), atol=1e-6)


def test_rows_are_picked() -> None:
    weight, ids = normal(20, 24).astype(np.float16), np.array([3, 19, 25, -1, 0])
    kernel = packed_embedding("main", 5, 20, 24, weight_dtype="float16")
    found = run(kernel, ids, weight, np.zeros((5, 24), np.float32))[-1]
    np.testing.assert_array_equal(found, weight[[3, 19, 19, 0, 0]].astype(np.float32))
    x, count = normal(3, 4, 10), np.array([1, 4, 0], np.int32)
    found = run(KERNELS["last_row"]("main", 3, 4, 10), x, count, np.zeros((3, 1, 10), np.float32))[-1]
    np.testing.assert_array_equal(found[:, 0], x[[0, 1, 2], [0, 3, 0]])


@pytest.mark.parametrize("normed", [False, True])
def test_a_projection_goes_to_the_cache(normed: bool) -> None:
    heads, kv_heads, width, dim, slots = 4, 2, 3, 8, 10
    shape = AttentionShape(1, width, heads, kv_heads, dim, 16, 2, slots, 0)
    x, cos, sin = normal(width, 6 * dim + 2 * 16), normal(1, 1, width, dim), normal(1, 1, width, dim) * 2
    weights = [normal(dim), normal(1, dim)[0]] if normed else []
    caches = [np.zeros((2, kv_heads, slots, size), np.float16) for size in (dim, 16)]
    control = [np.array([value], np.int32) for value in (1, 5, 2)]  # sequence, length, count
    kernel = qkv_prologue("main", shape, Prologue(1e-6 if normed else None), "float16", CacheForm())
    out = np.zeros((1, heads, width, dim), np.float32)
    *_, keys, values, _, _, _, found = run(kernel, x, *weights, cos, sin, *caches, *control, out)
    both = x[:, : 6 * dim].reshape(width, 6, dim).swapaxes(0, 1)
    if normed:
        both = both / np.sqrt((both**2).mean(-1, keepdims=True) + 1e-6)
        both = both * np.repeat(weights, (heads, kv_heads), axis=0)[:, None]
    both = rotated(both, cos[0], sin[0])
    np.testing.assert_allclose(found[0], both[:heads], atol=1e-5)
    expected = np.zeros_like(keys)
    expected[1, :, 5:7] = both[heads:, :2]
    np.testing.assert_allclose(keys.astype(np.float32), expected.astype(np.float32), atol=2e-3, rtol=2e-3)
    expected = np.zeros_like(values)
    expected[1, :, 5:7] = x[:, 6 * dim :].reshape(width, kv_heads, 16).swapaxes(0, 1)[:, :2]
    np.testing.assert_array_equal(values, expected)
