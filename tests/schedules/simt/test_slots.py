"""Rings, draft blocks and the freeing of cache slots on Vulkan devices, against the operators."""

from collections.abc import Callable
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
from dspark_compiler.schedules.simt.attention_mass import Queries, attention_mass
from dspark_compiler.schedules.simt.block_attention import block_attention
from dspark_compiler.schedules.simt.compact_slots import compact_slots
from dspark_compiler.schedules.simt.kernels import simt_kernels
from dspark_compiler.schedules.simt.logit_moments import logit_moments
from dspark_compiler.schedules.simt.select_slots import select_slots
from dspark_compiler.schedules.slot_rows import RowShape
from dspark_compiler.schedules.slot_shape import CacheShape
from tests.backends.vulkan.shaders import compiled, shaders_of, validate
from tests.vulkan.device import messages, need_vulkan

F16 = "float16"
SCALE = 0.3
KERNELS = simt_kernels(F16)
dspark = torch.ops.dspark


@pytest.fixture(autouse=True)
def _valid() -> Any:
    need_vulkan()
    yield
    assert messages() == []


def kernel(function: tvm.tirx.PrimFunc) -> Callable[..., list[np.ndarray]]:
    """All arrays as the kernel leaves them, given those it takes; it is valid SPIR-V."""
    for shader in shaders_of({"main": function}):
        validate(shader)
    return compiled(function)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32)


def half(*shape: int) -> np.ndarray:
    return normal(*shape).astype(np.float16)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def nothing(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array.copy()) for array in arrays]


def written(name: str, *arrays: np.ndarray, state: int = 0) -> np.ndarray:
    """What the operator leaves in argument ``state``."""
    given = tensors(*arrays)
    getattr(dspark, name)(*given)
    return given[state].numpy()


def test_rows_go_to_a_ring_and_come_back() -> None:
    shape = RowShape(3, 2, 7, 2, 9, 12)
    rows, state, sequence, count = normal(2, 2, 9, 12), normal(3, 2, 7, 12), ints(2, 0), ints(9, 4)
    write = kernel(KERNELS["write_ring"]("main", shape, sequence=True, count=True))
    append = kernel(KERNELS["append_queries"]("main", shape))
    read = kernel(KERNELS["read_ring"]("main", shape, sequence=True))
    for start in (0, 3, 40):
        length = ints(start, 5)
        expected = written("write_ring", rows, state, length, sequence, count, state=1)
        np.testing.assert_array_equal(write(rows, state, length, sequence, count)[1], expected)
        np.testing.assert_array_equal(append(state, rows, sequence, length, count)[0], expected)
        (*_, out) = read(expected, length, sequence, nothing(2, 2, 1, 12))
        np.testing.assert_array_equal(out, dspark.read_ring(*tensors(expected, length, sequence)).numpy())
    scratch, length, accepted = normal(3, 2, 4, 12), ints(6, 0, 20), ints(4, 0, 2)
    commit = kernel(KERNELS["commit_queries"]("main", RowShape(3, 2, 7, 3, 4, 12)))
    expected = written("commit_queries", state, scratch, length, accepted)
    np.testing.assert_array_equal(commit(state, scratch, length, accepted)[0], expected)


@pytest.mark.parametrize(("places", "dim"), [(50, 64), (20, 12)])
def test_a_block_sees_its_ring_and_itself(places: int, dim: int) -> None:
    call = kernel(block_attention("main", BlockShape(2, 6, 2, 5, 4, dim, 20, places, 10), SCALE))
    for length in (ints(0, 1), ints(places // 2, places - 10), ints(places - 3, 5 * places + 7)):
        arrays = [normal(2, 6, 5, dim), normal(2, 2, 4, dim), normal(2, 2, 4, 20)]
        arrays += [normal(2, 2, places, dim), normal(2, 2, places, 20), length]
        (*_, out) = call(*arrays, nothing(2, 5, 6, 20))
        exact = [torch.from_numpy(array.astype(np.float64)) for array in arrays[:-1]]
        expected = dspark.block_attention(*exact, torch.from_numpy(length), 10, SCALE)
        np.testing.assert_allclose(out, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_scores_go_to_the_slots_of_their_tokens() -> None:
    shape = RowShape(3, 2, 20, 2, 9)
    state, rows = normal(3, 2, 20), normal(2, 2, 9, 1)
    arrays = [state, rows, ints(2, 0), ints(30, 5), ints(9, 4), ints(11, 8)]
    found = kernel(KERNELS["append_slot_scores"]("main", shape))(*arrays)[0]
    np.testing.assert_array_equal(found, written("append_slot_scores", *arrays))
    arrays = [state, normal(3, 2, 4, 1), ints(30, 5, 0), ints(4, 0, 1), ints(6, 8, 20)]
    found = kernel(KERNELS["commit_slot_scores"]("main", RowShape(3, 2, 20, 3, 4)))(*arrays)[0]
    np.testing.assert_array_equal(found, written("commit_slot_scores", *arrays))
    arrays = [normal(3, 2, 4, 5), normal(3, 2, 3, 5)]
    found = kernel(KERNELS["write_scratch"]("main", RowShape(3, 2, 4, 3, 3, 5)))(*arrays)[0]
    np.testing.assert_array_equal(found, written("write_scratch", *arrays))


def test_a_state_is_read_and_replaced() -> None:
    state, seq = normal(3, 2, 5), ints(2)
    (*_, out) = kernel(KERNELS["read_state"]("main", state.shape, "float32"))(state, seq, nothing(1, 2, 5))
    np.testing.assert_array_equal(out[0], state[2])
    found = kernel(KERNELS["write_state"]("main", state.shape, "float32"))(state, out * 2, seq)[0]
    np.testing.assert_array_equal(found, written("write_state", state, out * 2, seq))


@pytest.mark.parametrize("slots", [100, 700])
def test_the_lowest_scores_go(slots: int) -> None:
    random = np.random.default_rng(slots)
    shape = CacheShape(2, 3, slots, 16, 24)
    choose = kernel(select_slots("main", shape, 2, 3))
    move = kernel(compact_slots("main", shape, dtype=F16, scored=True))
    position = np.sort(random.permuted(np.tile(np.arange(2 * slots), (2, 3, 1)), axis=-1)[..., :slots], -1)
    position = position.astype(np.int32)
    lengths = ((2 * slots, 0, slots // 3), (slots // 2, slots // 4, slots // 3), (2 * slots, 9, slots), (5, slots, 1))
    for ties in (False, True):
        score = random.standard_normal((1, 3, slots)).astype(np.float32)
        score = np.round(score) if ties else score
        score[0, 1, 7] = np.nan
        for length, free, need in lengths:
            control = ints(1), ints(length), ints(free), ints(need)
            (*_, source) = choose(score, position, *control, np.full(score.shape, -7, np.int32))
            expected = dspark.select_slots(*tensors(score, position, *control), 2, 3).numpy()
            np.testing.assert_array_equal(source, expected)
    state = [half(2, 3, slots, 16), half(2, 3, slots, 24), position, source, ints(1), normal(2, 3, slots)]
    control = ints(1), ints(2 * slots), ints(0), ints(slots // 3)
    state[3] = choose(score, position, *control, np.full(score.shape, -7, np.int32))[-1]
    expected = tensors(*state)
    dspark.compact_slots(*expected, None, None)
    for mine, right in zip(move(*state), expected, strict=True):
        np.testing.assert_array_equal(mine, right.numpy())


@pytest.mark.parametrize("storage", [INT8, E4M3FN], ids=lambda storage: storage.dtype)
def test_quantized_slots_are_read_and_moved(storage: Storage) -> None:
    shape, kind = CacheShape(2, 3, 100, 16, 16, storage), {INT8: torch.int8, E4M3FN: torch.float8_e4m3fn}[storage]
    codes, scales = quantized(torch.from_numpy(normal(2, 3, 100, 16)), kind)
    keys, scale, seq = codes.view(torch.int8).numpy().view(storage.dtype), scales.numpy(), ints(1)
    (*_, out) = kernel(KERNELS["read_keys"]("main", shape))(keys, scale, seq, nothing(1, 3, 100, 16))
    torch.testing.assert_close(torch.from_numpy(out), dspark.read_keys(codes, scales, torch.from_numpy(seq)))
    position = np.tile(np.arange(100, dtype=np.int32), (2, 3, 1))
    source = np.where(np.arange(100) < 60, np.arange(100) + 40, -1).astype(np.int32) * np.ones((1, 3, 1), np.int32)
    given = (keys, keys, position, source, seq, scale, scale)
    moved = kernel(compact_slots("main", shape, dtype=F16, scored=False))(*given)
    for found, before in zip(moved, given, strict=True):
        expected = before.copy()
        if before.shape[:1] == (2,):
            expected[1, :, :60] = before[1, :, 40:]
        np.testing.assert_array_equal(found, expected)
    queries, length = normal(1, 6, 10, 16), ints(40)
    moments = kernel(logit_moments("main", shape, SCALE, dtype=F16, heads=6, queries=10))
    (*_, out) = moments(queries, keys, scale, seq, length, nothing(2, 6, 100))
    expected = dspark.logit_moments(torch.from_numpy(queries), codes, scales, *tensors(seq, length), SCALE)
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-4, atol=1e-5)
    function, workspace = attention_mass("main", shape, Scoring(SCALE), Queries(6, 10, 7, bounded=False), F16)
    given = (normal(2, 6, 10, 16), keys, scale, position, seq, ints(60), ints(0))
    (*_, out, _) = kernel(function)(*given, nothing(1, 6, 100), nothing(*workspace))
    rest = tensors(*given[3:])
    expected = dspark.attention_mass(torch.from_numpy(given[0]), codes, scales, *rest, None, 7, SCALE, 0, 0.0, None)
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stored", [np.float16, np.float32], ids=lambda stored: stored.__name__)
def test_scores_of_slots(stored: Any) -> None:
    shape, dtype = CacheShape(2, 3, 100, 24, 24), np.dtype(stored).name
    keys, queries = normal(2, 3, 100, 24).astype(stored), normal(1, 6, 10, 24)
    moments = kernel(logit_moments("main", shape, SCALE, dtype=dtype, heads=6, queries=10))
    wide = torch.from_numpy(queries).double(), torch.from_numpy(keys).double()
    for length in (ints(1), ints(40)):
        (*_, out) = moments(queries, keys, ints(1), length, nothing(2, 6, 100))
        expected = dspark.logit_moments(*wide, None, *tensors(ints(1), length), SCALE).numpy()
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    ring_of, position = normal(2, 6, 10, 24), np.tile(np.arange(100, dtype=np.int32), (2, 3, 1))
    sinks = np.linspace(-3, 3, 6).astype(np.float32)
    scoring = Scoring(SCALE, window=30, softcap=5.0, sinks=True)
    function, workspace = attention_mass("main", shape, scoring, Queries(6, 10, 7, bounded=True), dtype)
    mass = kernel(function)
    for length, pending in ((60, 3), (95, 100), (2, 0)):
        control = ints(1), ints(length), ints(0), ints(pending)
        (*_, out, _) = mass(ring_of, keys, position, *control, sinks, nothing(1, 6, 100), nothing(*workspace))
        rest = tensors(position, *control)
        exact = torch.from_numpy(ring_of).double(), wide[1]
        expected = dspark.attention_mass(*exact, None, *rest, 7, SCALE, 30, 5.0, torch.from_numpy(sinks).double())
        np.testing.assert_allclose(out, expected.numpy(), rtol=1e-4, atol=1e-5)
