"""Norms, rope, embeddings and experts on Nvidia GPUs, against the operators or numpy in float64."""

import numpy as np
import pytest
import torch

from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.cuda.expert_linear import expert_linear
from dspark_compiler.schedules.cuda.fragments import pack_fragments
from dspark_compiler.schedules.cuda.kernels import cuda_kernels
from dspark_compiler.schedules.cuda.norm import layer_norm, rms_norm
from dspark_compiler.schedules.cuda.quantized_fragments import pack_bytes
from dspark_compiler.schedules.cuda.rows import packed_embedding, quantized_embedding, row_embedding
from dspark_compiler.schedules.cuda.topk import topk
from dspark_compiler.schedules.rope import RopeShape
from tests.schedules.cuda.gpu import call, compile_for, error, gpu

ARCH = "sm_90a"
EPSILON = 1e-6
KERNELS = cuda_kernels("float16")


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng().standard_normal(shape, dtype=np.float32)


def nothing(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.full(shape, np.nan, dtype)


@pytest.mark.parametrize(("rows", "depth"), [(1, 2560), (7, 16), (300, 80), (5, 1002), (3, 8192)])
def test_norms(rows: int, depth: int) -> None:
    gpu()
    functions = {
        "rms": rms_norm("rms", rows, depth, EPSILON, out_dtype="float16"),
        "plain": rms_norm("plain", rows, depth, EPSILON, weighted=False, in_dtype="float16"),
        "layer": layer_norm("layer", rows, depth, EPSILON),
    }
    compiled = compile_for(functions, ARCH)
    x, weight, bias = normal(rows, depth) * 3 + 1, normal(depth), normal(depth)
    wide = x.astype(float)
    root = np.sqrt((wide**2).mean(-1, keepdims=True) + EPSILON)
    (y,) = call(compiled["rms"], [x, weight, nothing(rows, depth, dtype=np.float16)])
    assert error(y, wide / root * weight) < 5e-4
    half = x.astype(np.float16)
    (y,) = call(compiled["plain"], [half, nothing(rows, depth)])
    assert error(y, half / np.sqrt((half.astype(float) ** 2).mean(-1, keepdims=True) + EPSILON)) < 1e-6
    (y,) = call(compiled["layer"], [x, weight, bias, nothing(rows, depth)])
    off = wide - wide.mean(-1, keepdims=True)
    assert error(y, off / np.sqrt((off**2).mean(-1, keepdims=True) + EPSILON) * weight + bias) < 1e-6


def test_rope_reads_heads_out_of_a_projection() -> None:
    gpu()
    rows, heads, width, dim, offset = 2, 4, 3, 64, 100
    shape = RopeShape(rows, heads, width, dim, (rows * width, 1000), offset)
    x, cos, sin = normal(rows * width, 1000), normal(rows, 1, width, dim), normal(rows, 1, width, dim)
    (y,) = call(
        compile_for({"f": KERNELS["rope"]("f", shape)}, ARCH)["f"], [x, cos, sin, nothing(rows, heads, width, dim)]
    )
    by_head = x[:, offset : offset + heads * dim].reshape(rows, width, heads, dim).swapaxes(1, 2)
    given = (torch.from_numpy(np.ascontiguousarray(array)) for array in (by_head, cos, sin))
    assert error(y, torch.ops.dspark.rope(*given).numpy()) < 1e-6


def test_rows_are_found() -> None:
    gpu()
    tokens, vocab, depth = 5, 1003, 100
    functions = {
        "packed": packed_embedding("packed", tokens, vocab, depth, weight_dtype="float16"),
        "plain": row_embedding("plain", tokens, vocab, depth, weight_dtype="float16"),
        "last": KERNELS["last_row"]("last", 2, tokens, depth),
    }
    compiled = compile_for(functions, ARCH)
    weight, ids = normal(vocab, depth).astype(np.float16), np.array([0, 1002, 15, 16, 500])
    for name, stored in (("packed", pack_fragments(weight)), ("plain", weight)):
        (y,) = call(compiled[name], [ids, stored, nothing(tokens, depth)])
        np.testing.assert_array_equal(y, weight[ids])
    x = normal(2, tokens, depth)
    (y,) = call(compiled["last"], [x, np.array([0, 3], np.int32), nothing(2, 1, depth)])
    np.testing.assert_array_equal(y[:, 0], x[[0, 1], [0, 2]])


def test_rows_are_found_among_codes() -> None:
    gpu()
    vocab, depth, ids = 1003, 192, np.array([0, 1002, 15, 16, 500])
    function = quantized_embedding("f", 5, vocab, depth, codes_kept="int8", scale_dtype="float32")
    codes = np.random.default_rng(0).integers(-127, 128, (vocab, depth)).astype(np.int8)
    scales = np.random.default_rng(1).random(vocab, np.float32)
    (y,) = call(compile_for({"f": function}, ARCH)["f"], [ids, pack_bytes(codes), scales, nothing(5, depth)])
    np.testing.assert_array_equal(y, codes[ids] * scales[ids, None])


@pytest.mark.parametrize(("columns", "k"), [(3, 3), (130, 8)])
def test_the_largest_come_first(columns: int, k: int) -> None:
    gpu()
    kernel = compile_for({"f": topk("f", 7, columns, k)}, ARCH)["f"]
    for x in (normal(7, columns), np.round(normal(7, columns))):
        values, indices = call(kernel, [x, nothing(7, k), np.full((7, k), -7, np.int64)], 2)
        order = np.argsort(-x, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_array_equal(values, np.take_along_axis(x, order, 1))


@pytest.mark.parametrize(("features", "depth"), [(300, 520), (7, 12)])
def test_rows_go_to_their_experts(features: int, depth: int) -> None:
    gpu()
    rows, experts = 6, 8
    kernel = compile_for({"f": expert_linear("f", rows, experts, features, depth, weight_dtype="float16")}, ARCH)["f"]
    x, weight = normal(rows, depth), normal(experts, features, depth).astype(np.float16)
    expert = np.random.default_rng().integers(0, experts, rows)
    (y,) = call(kernel, [x, weight, expert, nothing(rows, features)])
    assert error(y, np.einsum("rk,rnk->rn", x.astype(float), weight[expert].astype(float))) < 2e-6
