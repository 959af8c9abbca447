"""Caches of a byte an element on Vulkan devices: against the operators, and decode against verify."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from tvm.tirx.script.builder import ir as T

from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.graph.reference import quantized
from dspark_compiler.schedules.attention_shape import CacheForm
from dspark_compiler.schedules.cache_storage import E4M3FN, INT8, Storage
from dspark_compiler.schedules.simt.attention import append_attention, scratch_attention
from dspark_compiler.schedules.simt.cache_rows import commit_scratch
from dspark_compiler.schedules.simt.flat import each
from dspark_compiler.schedules.simt.stored import cached
from dspark_compiler.schedules.tir import Arg, kernel
from tests.backends.vulkan.shaders import run, shaders_of, validate
from tests.schedules.cuda.test_attention import Case, as_torch, exact, operands
from tests.vulkan.device import messages, need_vulkan

CASES = [
    Case(2, (130, 0), storage=INT8, dim=128, value_dim=96),
    Case(5, (200,), scratch=8, evicted=20, window=100, dim=24, value_dim=16, heads=12, storage=E4M3FN),
    Case(34, (50, 7), scratch=40, window=40, softcap=5.0, storage=INT8),
]


@pytest.fixture(autouse=True)
def _valid() -> Any:
    need_vulkan()
    yield
    assert messages() == []


def attend(case: Case, given: dict[str, np.ndarray], *, valid: bool = False) -> dict[str, np.ndarray]:
    """All tensors of a call as the kernel leaves them, "out" among them."""
    build = scratch_attention if case.scratch else append_attention
    kernel, workspace = build("main", case.shape, case.scoring, case.storage.dtype, case.form)
    for shader in shaders_of({"main": kernel}) if valid else ():
        validate(shader)
    arrays = given | {"out": case.out, "workspace": np.full(workspace, np.nan, np.float32)}
    return dict(zip(arrays, run(kernel, *arrays.values()), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"S{case.width}-{case.storage.dtype}")
def test_attention_is_the_operator(case: Case) -> None:
    given = operands(case)
    given |= {name: _off_ties(given[name], case.storage) for name in "kv"}
    found = attend(case, given, valid=True)
    right, tensors = exact(case, given)
    np.testing.assert_allclose(found.pop("out"), right, rtol=1e-4, atol=1e-5)
    for name, expected in tensors.items():
        # A device's quotient may be off in the last place, and with it a scale.
        tolerance = 1e-6 if name.endswith("scale") else 0
        torch.testing.assert_close(as_torch(found[name]).float(), expected.float(), rtol=tolerance, atol=0)


def _off_ties(rows: np.ndarray, storage: Storage) -> np.ndarray:
    """The rows without elements that a quotient off in the last places would give another code."""
    kind = {INT8: torch.int8, E4M3FN: torch.float8_e4m3fn}[storage]
    ratio = torch.from_numpy(rows) / quantized(torch.from_numpy(rows), kind)[1][..., None]
    low, high = (ratio * near for near in (1 - 1e-6, 1 + 1e-6))
    codes = [near.round() if storage is INT8 else near.clamp(-448, 448).to(kind).float() for near in (low, high)]
    return np.where((codes[0] != codes[1]).numpy(), rows * np.float32(1.0001), rows)


@pytest.mark.parametrize(
    ("storage", "numbers"), [(INT8, np.int8), (E4M3FN, ml_dtypes.float8_e4m3fn)], ids=["int8", "e4m3"]
)
def test_every_code_is_its_number(storage: Storage, numbers: type) -> None:
    """The smallest of e4m3, too, which are no normal numbers of that type: devices may drop float32's of that kind."""

    def body(codes: Any, out: Any) -> None:
        each((256,), lambda i: T.buffer_store(out, cached(codes[i], storage, storage.dtype), [i]))

    function = kernel("main", [Arg("codes", (256,), storage.dtype), Arg("out", (256,))], body)
    codes = np.arange(256, dtype=np.uint8)
    _, found = run(function, codes.view(storage.dtype), np.zeros(256, np.float32))
    right = codes.view(numbers).astype(np.float32)
    finite = np.isfinite(right)
    np.testing.assert_array_equal(found[finite], right[finite])


@pytest.mark.parametrize("storage", [INT8, E4M3FN], ids=lambda storage: storage.dtype)
def test_decode_gives_the_bits_of_verify(storage: Storage) -> None:
    given = operands(case := Case(4, (90,), scratch=8, dim=64, value_dim=64, slots=100, storage=storage))
    verified = attend(case, given)["out"]
    one = Case(1, (90,), dim=64, value_dim=64, slots=100, storage=storage)
    step = operands(one) | {name: given[name][:, :, :1].copy() for name in "qkv"}
    step |= {name: given[name] for name in ("k_cache", "v_cache", "k_scale", "v_scale")}
    np.testing.assert_array_equal(attend(one, step)["out"][:, 0], verified[:, 0])


def test_commit_moves_codes_and_scales() -> None:
    given = operands(case := Case(4, (20, 26), scratch=4, dim=16, value_dim=16, slots=30, storage=INT8, evicted=2))
    order = ("k_cache", "v_cache", "k_scratch", "v_scratch", "length", "accepted", "free", "slot_position")
    order += ("k_scale", "v_scale", "k_scratch_scale", "v_scratch_scale")
    given |= {"accepted": np.array([3, 2], np.int32), "free": np.array([12, 6], np.int32)}
    arrays = [given[name] for name in order]
    expected = [torch.from_numpy(array.copy()) for array in arrays]
    torch.ops.dspark.commit_scratch(*expected)
    form = CacheForm(INT8, free=True, slot_position=True)
    for found, wanted in zip(run(commit_scratch("main", case.shape, "int8", form), *arrays), expected, strict=True):
        np.testing.assert_array_equal(found, wanted.numpy())
