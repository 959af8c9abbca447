"""Attention kernels against the reference operators, which are plain torch."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules import attention
from dspark_compiler.schedules.attention_shape import AttentionShape, Scoring, key_cache_shape
from dspark_compiler.schedules.isa import VectorIsa
from tests.schedules.kernels import MACHINES, WIDEST, build, normal

NARROWEST = next(iter(MACHINES))


@dataclass(frozen=True)
class Case:
    """Sizes as in AttentionShape; ``length`` slots a sequence are in use before the call."""

    width: int
    length: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    value_dim: int = 16
    slots: int = 300
    scratch: int = 8
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    isa: VectorIsa = WIDEST

    def __str__(self) -> str:
        return f"S{self.width}-at{self.length[0]}-H{self.heads}x{self.kv_heads}-D{self.dim}x{self.value_dim}"

    @property
    def batch(self) -> int:
        return len(self.length)

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.dim**-0.5, self.window, self.softcap, self.sinks)

    def shape(self, scratch: int = 0) -> AttentionShape:
        return AttentionShape(
            self.batch,
            self.width,
            self.heads,
            self.kv_heads,
            self.dim,
            self.value_dim,
            self.batch,
            self.slots,
            scratch,
        )


class Tensors:
    """Inputs and states of a case: logical for the reference, physical for the kernel."""

    def __init__(self, case: Case) -> None:
        b, g, c = case.batch, case.kv_heads, case.slots
        self.case = case
        self.q = normal(b, case.heads, case.width, case.dim)
        self.k = normal(b, g, case.width, case.dim, seed=1)
        self.v = normal(b, g, case.width, case.value_dim, seed=2)
        self.keys = normal(b, g, c, case.dim, seed=3)
        self.values = normal(b, g, c, case.value_dim, seed=4)
        self.k_scratch = np.zeros((b, g, case.scratch, case.dim), np.float32)
        self.v_scratch = np.zeros((b, g, case.scratch, case.value_dim), np.float32)
        self.sinks = normal(case.heads, seed=5)
        self.length = np.array(case.length, np.int32)
        self.sequence = np.arange(b, dtype=np.int32)[::-1].copy()
        self.out = np.full((b, case.width, case.heads, case.value_dim), np.nan, np.float32)

    @property
    def extra(self) -> list[np.ndarray]:
        return [self.sinks] if self.case.sinks else []

    def scoring_arguments(self) -> tuple[object, ...]:
        s = self.case.scoring
        return s.scale, s.window, s.softcap, torch.from_numpy(self.sinks) if s.sinks else None


def panels(keys: np.ndarray, isa: VectorIsa) -> np.ndarray:
    """Keys [B, G, C, D] as the kernels store them."""
    b, g, c, d = keys.shape
    count = key_cache_shape(b, g, c, d, isa)[2]
    padded = np.zeros((b, g, count * isa.lanes, d), keys.dtype)
    padded[:, :, :c] = keys
    return np.ascontiguousarray(padded.reshape(b, g, count, isa.lanes, d).swapaxes(-1, -2))


def torched(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array.copy()) for array in arrays]


CASES = [
    Case(width=1, length=(0,)),
    Case(width=1, length=(127, 255, 3), heads=6, kv_heads=2),
    Case(width=7, length=(125,), sinks=True, dim=8, value_dim=24),
    Case(width=5, length=(131,), window=20, softcap=3.0, kv_heads=1),
    Case(width=2, length=(5,), slots=13, heads=2, window=3, dim=80, value_dim=80),
    Case(width=3, length=(40,), slots=50, dim=6, value_dim=10, isa=NARROWEST),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_append_attention_is_the_reference(case: Case) -> None:
    t = Tensors(case)
    count = np.array([case.width] + [max(case.width - 1, 1)] * (case.batch - 1), np.int32)
    keys, values = torched(t.keys, t.values)
    expected = torch.ops.dspark.append_attention(
        *torched(t.q, t.k, t.v), keys, values, *torched(t.sequence, t.length, count), *t.scoring_arguments()
    ).numpy()
    k_cache, v_cache = panels(t.keys, case.isa), t.values.copy()
    function = attention.append_attention("append", case.shape(), case.scoring, case.isa)
    build(function, case.isa)(t.q, t.k, t.v, k_cache, v_cache, t.sequence, t.length, count, *t.extra, t.out)
    for row, real in enumerate(count):
        np.testing.assert_allclose(t.out[row, :real], expected[row, :real], rtol=1e-4, atol=1e-5)
    assert np.isfinite(t.out).all()
    np.testing.assert_array_equal(k_cache, panels(keys.numpy(), case.isa))
    np.testing.assert_array_equal(v_cache, values.numpy())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scratch_attention_is_append_bit_for_bit_and_leaves_live_slots(case: Case) -> None:
    t = Tensors(case)
    sequence = np.arange(case.batch, dtype=np.int32)
    count = np.full(case.batch, case.width, np.int32)
    appended = t.out.copy()
    append = attention.append_attention("append", case.shape(), case.scoring, case.isa)
    build(append, case.isa)(
        t.q, t.k, t.v, panels(t.keys, case.isa), t.values.copy(), sequence, t.length, count, *t.extra, appended
    )
    k_cache, v_cache = panels(t.keys, case.isa), t.values.copy()
    verify = attention.scratch_attention("scratch", case.shape(case.scratch), case.scoring, case.isa)
    build(verify, case.isa)(t.q, t.k, t.v, k_cache, v_cache, t.k_scratch, t.v_scratch, t.length, *t.extra, t.out)
    np.testing.assert_array_equal(t.out, appended)
    np.testing.assert_array_equal(k_cache, panels(t.keys, case.isa))
    np.testing.assert_array_equal(v_cache, t.values)
    np.testing.assert_array_equal(t.k_scratch[:, :, : case.width], t.k)
    np.testing.assert_array_equal(t.v_scratch[:, :, : case.width], t.v)


def test_a_token_is_the_same_from_decode_and_from_a_chunk() -> None:
    chunk = Case(width=24, length=(119,), window=130)
    t = Tensors(chunk)
    k_cache, v_cache = panels(t.keys, WIDEST), t.values.copy()
    sequence = np.zeros(1, np.int32)
    append = build(attention.append_attention("chunk", chunk.shape(), chunk.scoring, WIDEST))
    append(t.q, t.k, t.v, k_cache.copy(), v_cache.copy(), sequence, t.length, np.int32([24]), t.out)
    one = replace(chunk, width=1)
    step = build(attention.append_attention("step", one.shape(), one.scoring, WIDEST))
    for i in range(24):
        out = np.zeros((1, 1, chunk.heads, chunk.value_dim), np.float32)
        token = [np.ascontiguousarray(a[:, :, i : i + 1]) for a in (t.q, t.k, t.v)]
        step(*token, k_cache, v_cache, sequence, t.length + np.int32(i), np.int32([1]), out)
        np.testing.assert_array_equal(out[:, 0], t.out[:, i])


def test_a_sequence_without_tokens_is_left_alone() -> None:
    case = Case(width=2, length=(10, 20))
    t = Tensors(case)
    k_cache, v_cache = panels(t.keys, WIDEST), t.values.copy()
    function = attention.append_attention("append", case.shape(), case.scoring, WIDEST)
    build(function)(t.q, t.k, t.v, k_cache, v_cache, np.int32([0, 1]), t.length, np.int32([0, 0]), t.out)
    np.testing.assert_array_equal(k_cache, panels(t.keys, WIDEST))
    np.testing.assert_array_equal(v_cache, t.values)
    assert np.isfinite(t.out).all()


def test_tokens_past_the_last_slot_are_dropped() -> None:
    case = Case(width=4, length=(30,), slots=32)
    t = Tensors(case)
    k_cache, v_cache = panels(t.keys, WIDEST), t.values.copy()
    function = attention.append_attention("append", case.shape(), case.scoring, WIDEST)
    build(function)(t.q, t.k, t.v, k_cache, v_cache, np.int32([0]), t.length, np.int32([4]), t.out)
    t.values[:, :, 30:32], t.keys[:, :, 30:32] = t.v[:, :, :2], t.k[:, :, :2]
    np.testing.assert_array_equal(v_cache, t.values)
    np.testing.assert_array_equal(k_cache, panels(t.keys, WIDEST))


@pytest.mark.parametrize("isa", [NARROWEST, WIDEST])
def test_commit_moves_the_accepted_tokens(isa: VectorIsa) -> None:
    case = Case(width=8, length=(0, 126, 297, 10), value_dim=10, isa=isa)
    t = Tensors(case)
    t.k_scratch, t.v_scratch = normal(*t.k_scratch.shape, seed=6), normal(*t.v_scratch.shape, seed=7)
    accepted = np.array([8, 5, 3, 0], np.int32)
    keys, values = torched(t.keys, t.values)
    torch.ops.dspark.commit_scratch(keys, values, *torched(t.k_scratch, t.v_scratch, t.length, accepted))
    k_cache, v_cache = panels(t.keys, isa), t.values.copy()
    function = attention.commit_scratch("commit", case.shape(case.scratch), isa)
    build(function, isa)(k_cache, v_cache, t.k_scratch, t.v_scratch, t.length, accepted)
    np.testing.assert_array_equal(k_cache, panels(keys.numpy(), isa))
    np.testing.assert_array_equal(v_cache, values.numpy())
