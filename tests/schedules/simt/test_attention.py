"""Attention on Vulkan devices: against the operators, and decode against verify."""

from typing import Any

import numpy as np
import pytest
import torch

from dspark_compiler.errors import LoweringError
from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.simt.attention import append_attention, scratch_attention
from dspark_compiler.schedules.simt.cache_rows import commit_scratch
from tests.backends.vulkan.shaders import run
from tests.schedules.cuda.test_attention import Case, exact, operands
from tests.vulkan.device import need_vulkan

CASES = [
    Case(1, (130, 0)),
    Case(1, (290,)),
    Case(5, (280,), scratch=8, window=50, dim=64, value_dim=80),
    Case(3, (250, 77), evicted=20, window=100, sinks=True),
    Case(2, (90,), softcap=5.0, dim=256, value_dim=256, slots=100),
    Case(40, (100, 10), window=64, sinks=True, dim=8, value_dim=24),
    Case(33, (100,), scratch=40, evicted=30, window=90, dim=8, value_dim=8, slots=140),
]


def attend(case: Case, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All tensors of a call as the kernel leaves them, "out" among them."""
    build = scratch_attention if case.scratch else append_attention
    kernel, workspace = build("main", case.shape, case.scoring, "float16", case.form)
    out = np.full((len(case.length), case.width, case.heads, case.value_dim), np.nan, np.float32)
    arrays = given | {"out": out, "workspace": np.full(workspace, np.nan, np.float32)}
    return dict(zip(arrays, run(kernel, *arrays.values()), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"S{case.width}-D{case.dim}x{case.value_dim}")
def test_attention_is_the_operator(case: Case) -> None:
    need_vulkan()
    given = operands(case)
    found = attend(case, given)
    np.testing.assert_allclose(found["out"], exact(case, given)[0], atol=2e-3)
    kind = "scratch" if case.scratch else "cache"
    for name in ("k", "v"):
        stored, new = found[f"{name}_{kind}"], given[name].astype(np.float16)
        for row in range(len(case.length)):
            sequence = row if case.scratch else int(given["sequence"][row])
            used = 0 if case.scratch else max(int(case.length[row]) - case.evicted, 0)
            kept = min(case.width, stored.shape[2] - used)
            np.testing.assert_array_equal(stored[sequence, :, used : used + kept], new[row, :, :kept])


def test_decode_gives_the_bits_of_verify() -> None:
    need_vulkan()
    case = Case(4, (290,), scratch=8, dim=128, value_dim=128)
    given = operands(case)
    verified = attend(case, given)["out"]
    one = Case(1, (290,), dim=128, value_dim=128)
    step = operands(one) | {name: given[name][:, :, :1].copy() for name in "qkv"}
    step |= {name: given[name] for name in ("k_cache", "v_cache")}
    np.testing.assert_array_equal(attend(one, step)["out"][:, 0], verified[:, 0])


def test_commit_moves_what_was_accepted() -> None:
    need_vulkan()
    shape, random = AttentionShape(2, 4, 2, 2, 16, 8, 2, 30, 4), np.random.default_rng(0)

    def rows(count: int, dim: int) -> Any:
        return random.standard_normal((2, 2, count, dim)).astype(np.float16)

    length, accepted, free = (np.array(values, np.int32) for values in ([20, 28], [3, 2], [12, 4]))
    arrays = [rows(30, 16), rows(30, 8), rows(4, 16), rows(4, 8), length, accepted, free]
    arrays.append(random.integers(0, 99, (2, 2, 30)).astype(np.int32))
    expected = [torch.from_numpy(array.copy()) for array in arrays]
    torch.ops.dspark.commit_scratch(*expected[:6], free=expected[6], slot_position=expected[7])
    kernel = commit_scratch("main", shape, "float16", CacheForm(free=True, slot_position=True))
    for found, wanted in zip(run(kernel, *arrays), expected, strict=True):
        np.testing.assert_array_equal(found, wanted.numpy())


def test_caches_that_are_refused() -> None:
    with pytest.raises(LoweringError, match="multiples of 8"):
        append_attention("a", AttentionShape(1, 1, 2, 1, 12, 16, 1, 100, 0), Scoring(1.0), "float16", CacheForm())
