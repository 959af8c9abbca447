"""Rings, draft blocks and the freeing of cache slots on Nvidia GPUs, against the operators."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import tvm

from dspark_compiler.graph import draft_ops, pruning_ops  # noqa: F401 - define torch.ops.dspark
from dspark_compiler.graph.reference import quantized
from dspark_compiler.schedules.attention_shape import Scoring
from dspark_compiler.schedules.block_attention import BlockShape
from dspark_compiler.schedules.cache_storage import E4M3FN, INT8, Storage
from dspark_compiler.schedules.cuda.attention_mass import attention_mass
from dspark_compiler.schedules.cuda.block_attention import block_attention
from dspark_compiler.schedules.cuda.compact_slots import compact_slots
from dspark_compiler.schedules.cuda.kernels import cuda_kernels
from dspark_compiler.schedules.cuda.logit_moments import logit_moments
from dspark_compiler.schedules.cuda.select_slots import select_slots
from dspark_compiler.schedules.slot_rows import RowShape
from dspark_compiler.schedules.slot_shape import CacheShape
from tests.schedules.cuda.gpu import call, compile_for, gpu

ARCH = "sm_90a"
F16 = "float16"
SCALE = 0.3
KERNELS = cuda_kernels(F16)
dspark = torch.ops.dspark


def kernel(build: Callable[..., tvm.tirx.PrimFunc], *sizes: Any, **options: Any) -> Callable[..., list[np.ndarray]]:
    """All arrays as the kernel leaves them, given those it takes."""
    gpu()
    compiled = compile_for({"kernel": build("kernel", *sizes, **options)}, ARCH)["kernel"]
    return lambda *arrays: call(compiled, list(arrays), len(arrays))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng().standard_normal(shape, dtype=np.float32)


def half(*shape: int) -> np.ndarray:
    return normal(*shape).astype(np.float16)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def written(name: str, *arrays: np.ndarray | None, state: int = 0) -> np.ndarray:
    """What the operator leaves in argument ``state``."""
    tensors = [None if array is None else torch.from_numpy(array.copy()) for array in arrays]
    getattr(dspark, name)(*tensors)
    return tensors[state].numpy()


def test_every_kernel_compiles() -> None:
    shape, cache = RowShape(2, 2, 7, 2, 9, 12), CacheShape(2, 3, 100, 16, 12)
    quantized_cache = replace(cache, storage=INT8)
    functions = [
        KERNELS["write_ring"]("f0", shape),
        KERNELS["read_ring"]("f1", shape),
        KERNELS["append_queries"]("f2", shape),
        KERNELS["read_keys"]("f3", replace(cache, storage=E4M3FN)),
        select_slots("f4", cache, 2, 3),
        compact_slots("f5", quantized_cache, dtype=F16, scored=True),
        logit_moments("f6", replace(cache, storage=E4M3FN), SCALE, heads=6, queries=10, dtype=F16),
        attention_mass(
            "f7", replace(cache, storage=INT8), Scoring(SCALE), heads=6, places=10, last=7, bounded=True, dtype=F16
        ),
        block_attention("f8", BlockShape(1, 4, 2, 5, 5, 64, 64, 50, 10), SCALE, dtype=F16),
        block_attention("f8b", BlockShape(1, 4, 2, 5, 5, 64, 64, 50, 10), SCALE, out_dtype="bfloat16"),
    ]
    compile_for({f"f{i}": function for i, function in enumerate(functions)}, ARCH)


@pytest.mark.parametrize("start", [0, 3, 40])
def test_rows_go_to_a_ring_and_come_back(start: int) -> None:
    shape = RowShape(3, 2, 7, 2, 9, 12)
    rows, state = normal(2, 2, 9, 12), normal(3, 2, 7, 12)
    length, sequence, count = ints(start, 5), ints(2, 0), ints(9, 4)
    write = kernel(KERNELS["write_ring"], shape, sequence=True, count=True)
    expected = written("write_ring", rows, state, length, sequence, count, state=1)
    np.testing.assert_array_equal(write(rows, state, length, sequence, count)[1], expected)
    append = kernel(KERNELS["append_queries"], shape)
    np.testing.assert_array_equal(append(state, rows, sequence, length, count)[0], expected)
    read = kernel(KERNELS["read_ring"], shape, sequence=True)
    (*_, out) = read(expected, length, sequence, np.full((2, 2, 1, 12), np.nan, np.float32))
    np.testing.assert_array_equal(out, dspark.read_ring(*map(torch.from_numpy, (expected, length, sequence))).numpy())


@pytest.mark.parametrize("dtype", [F16, "float32"])
@pytest.mark.parametrize("places", [50, 300])
def test_a_block_sees_its_ring_and_itself(places: int, dtype: str) -> None:
    shape = BlockShape(2, 6, 2, 5, 4, 64, 32, places, 10)
    run = kernel(block_attention, shape, SCALE, dtype=dtype)
    for length in (ints(0, 1), ints(places // 2, places - 10), ints(places - 3, 5 * places + 7)):
        q, k, v = (half(*s).astype(np.float32) for s in ((2, 6, 5, 64), (2, 2, 4, 64), (2, 2, 4, 32)))
        rings = half(2, 2, places, 64).astype(dtype), half(2, 2, places, 32).astype(dtype)
        (*_, out) = run(q, k, v, *rings, length, np.full((2, 5, 6, 32), np.nan, np.float32))
        tensors = [torch.from_numpy(array) for array in (q, k, v, *(r.astype(np.float32) for r in rings), length)]
        np.testing.assert_allclose(out, dspark.block_attention(*tensors, 10, SCALE).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slots", [100, 3000])
@pytest.mark.parametrize("ties", [False, True])
def test_the_lowest_scores_go(slots: int, ties: bool) -> None:
    random = np.random.default_rng()
    shape = CacheShape(2, 3, slots, 16, 12)
    choose, move = kernel(select_slots, shape, 2, 3), kernel(compact_slots, shape, dtype=F16, scored=True)
    score = random.standard_normal((1, 3, slots)).astype(np.float32)
    score = np.round(score) if ties else score
    position = np.sort(random.permuted(np.tile(np.arange(2 * slots), (2, 3, 1)), axis=-1)[..., :slots], -1)
    position = position.astype(np.int32)
    for length, free, need in ((2 * slots, 0, slots // 3), (slots // 2, slots // 4, slots // 3), (2 * slots, 9, slots)):
        control = ints(1), ints(length), ints(free), ints(need)
        (*_, source) = choose(score, position, *control, np.full(score.shape, -7, np.int32))
        tensors = [torch.from_numpy(array) for array in (score, position, *control)]
        np.testing.assert_array_equal(source, dspark.select_slots(*tensors, 2, 3).numpy())
        state = [half(2, 3, slots, 16), half(2, 3, slots, 12), position, source, ints(1), half(2, 3, slots)]
        state[-1] = state[-1].astype(np.float32)
        expected = [torch.from_numpy(array.copy()) for array in state]
        dspark.compact_slots(*expected, None, None)
        for mine, right in zip(move(*state), expected, strict=True):
            np.testing.assert_array_equal(mine, right.numpy())


@pytest.mark.parametrize("storage", [INT8, E4M3FN], ids=lambda storage: storage.dtype)
def test_quantized_slots_are_read_and_moved(storage: Storage) -> None:
    shape, kind = CacheShape(2, 3, 100, 16, 16, storage), {INT8: torch.int8, E4M3FN: torch.float8_e4m3fn}[storage]
    codes, scales = quantized(torch.randn(2, 3, 100, 16), kind)
    keys, scale, seq = codes.view(torch.int8).numpy().view(storage.dtype), scales.numpy(), ints(1)
    (*_, out) = kernel(KERNELS["read_keys"], shape)(keys, scale, seq, np.zeros((1, 3, 100, 16), np.float32))
    torch.testing.assert_close(torch.from_numpy(out), dspark.read_keys(codes, scales, torch.from_numpy(seq)))
    position = np.tile(np.arange(100, dtype=np.int32), (2, 3, 1))
    source = np.where(np.arange(100) < 60, np.arange(100) + 40, -1).astype(np.int32) * np.ones((1, 3, 1), np.int32)
    moved = kernel(compact_slots, shape, dtype=F16, scored=False)(keys, keys, position, source, seq, scale, scale)
    for found, given in zip(moved, (keys, keys, position, source, seq, scale, scale), strict=True):
        expected = given.copy()
        if given.shape[:1] == (2,):
            expected[1, :, :60] = given[1, :, 40:]
        np.testing.assert_array_equal(found, expected)
    queries, length = half(1, 6, 10, 16).astype(np.float32), ints(40)
    (*_, out) = kernel(logit_moments, shape, SCALE, heads=6, queries=10, dtype=F16)(
        queries, keys, scale, seq, length, np.full((2, 6, 100), np.nan, np.float32)
    )
    given = (torch.from_numpy(queries), codes, scales, torch.from_numpy(seq), torch.from_numpy(length))
    np.testing.assert_allclose(out, dspark.logit_moments(*given, SCALE).numpy(), rtol=1e-4, atol=1e-5)
    run = kernel(attention_mass, shape, Scoring(SCALE), heads=6, places=10, last=7, bounded=False, dtype=F16)
    ring_of, control = half(2, 6, 10, 16).astype(np.float32), (seq, ints(60), ints(0))
    (*_, out) = run(ring_of, keys, scale, position, *control, np.full((1, 6, 100), np.nan, np.float32))
    given = map(torch.from_numpy, (position, *control))
    expected = dspark.attention_mass(torch.from_numpy(ring_of), codes, scales, *given, None, 7, SCALE, 0, 0.0, None)
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_scores_of_slots() -> None:
    shape = CacheShape(2, 3, 100, 12, 12)
    keys, queries = half(2, 3, 100, 12), half(1, 6, 10, 12).astype(np.float32)
    moments = kernel(logit_moments, shape, SCALE, heads=6, queries=10, dtype=F16)
    wide = torch.from_numpy(keys).double(), torch.from_numpy(queries).double()
    for length in (ints(1), ints(40)):
        (*_, out) = moments(queries, keys, ints(1), length, np.full((2, 6, 100), np.nan, np.float32))
        control = torch.from_numpy(ints(1)), torch.from_numpy(length)
        expected = dspark.logit_moments(wide[1], wide[0], None, *control, SCALE).numpy()
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    ring_of, position = half(2, 6, 10, 12).astype(np.float32), np.tile(np.arange(100, dtype=np.int32), (2, 3, 1))
    sinks = np.linspace(-3, 3, 6).astype(np.float32)
    scoring = Scoring(SCALE, window=30, softcap=5.0, sinks=True)
    mass = kernel(attention_mass, shape, scoring, heads=6, places=10, last=7, bounded=True, dtype=F16)
    for length, pending in ((60, 3), (95, 100), (2, 0)):
        control = ints(1), ints(length), ints(0), ints(pending)
        (*_, out) = mass(ring_of, keys, position, *control, sinks, np.full((1, 6, 100), np.nan, np.float32))
        given = map(torch.from_numpy, (position, *control))
        expected = dspark.attention_mass(
            torch.from_numpy(ring_of), wide[0].float(), None, *given, 7, SCALE, 30, 5.0, torch.from_numpy(sinks)
        )
        np.testing.assert_allclose(out, expected.numpy(), rtol=1e-4, atol=1e-5)
