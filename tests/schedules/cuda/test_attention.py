"""Attention on Nvidia GPUs: plans fit the chip, kernels build without spills, and are right where there is a GPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dspark_compiler.errors import LoweringError
from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.cache_storage import INT8
from dspark_compiler.schedules.cuda.attention import append_attention, scratch_attention, written_attention
from dspark_compiler.schedules.cuda.attention_decode import ROUND, decode_plan
from dspark_compiler.schedules.cuda.attention_prefill import prefill_plan
from dspark_compiler.schedules.cuda.attention_rows import Problem, row_bytes
from dspark_compiler.schedules.cuda.cache_writes import commit_scratch
from dspark_compiler.schedules.cuda.qkv_prologue import Prologue, qkv_prologue
from tests.schedules.cuda.gpu import call, compile_for, error, gpu, resources

BLOCK_MEMORY = 227 * 1024  # bytes, of compute capability 9.0
ARCH = "sm_90a"


@dataclass(frozen=True)
class Case:
    """A call with fp16 caches; ``length`` tokens a sequence are confirmed, ``evicted`` of them have lost their slot."""

    width: int
    length: tuple[int, ...]
    heads: int = 6
    kv_heads: int = 2
    dim: int = 16
    value_dim: int = 16
    slots: int = 300
    scratch: int = 0
    evicted: int = 0
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False

    @property
    def shape(self) -> AttentionShape:
        rows = len(self.length)
        heads = (self.heads, self.kv_heads, self.dim, self.value_dim)
        return AttentionShape(rows, self.width, *heads, rows, self.slots, self.scratch)

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.dim**-0.5, self.window, self.softcap, self.sinks)

    @property
    def form(self) -> CacheForm:
        return CacheForm(free=bool(self.evicted), slot_position=bool(self.evicted))

    def kernel(self) -> tuple[Any, tuple[int, ...]]:
        build = scratch_attention if self.scratch else append_attention
        return build("attention", self.shape, self.scoring, "float16", self.form, out_dtype="float32")


CASES = [
    Case(1, (130, 0)),
    Case(5, (200,), scratch=8, window=50, dim=64, value_dim=80),
    Case(3, (250, 77), evicted=20, window=100, sinks=True),
    Case(2, (90,), softcap=5.0, dim=256, value_dim=256),
    Case(70, (120, 10), window=64, sinks=True, dim=96, value_dim=64),
    Case(40, (100,), scratch=40, evicted=30, window=90, dim=8, value_dim=8),
]


def operands(case: Case) -> dict[str, np.ndarray]:
    """The operator's tensors in its order, numbers as fp16 holds them."""
    random, shape = np.random.default_rng(case.width), case.shape
    stored, new = (shape.batch, shape.kv_heads), (shape.rows, shape.kv_heads, shape.width)

    def normal(*sizes: int) -> np.ndarray:
        return random.standard_normal(sizes).astype(np.float16)

    found = {"q": normal(shape.rows, shape.heads, shape.width, shape.head_dim).astype(np.float32)}
    for name, dim in (("k", shape.head_dim), ("v", shape.value_dim)):
        found[name] = normal(*new, dim).astype(np.float32)
    for place, count in (("cache", shape.slots), ("scratch", shape.scratch)):
        if count:
            found[f"k_{place}"] = normal(*stored, count, shape.head_dim)
            found[f"v_{place}"] = normal(*stored, count, shape.value_dim)
    length = np.array(case.length, np.int32)
    if not case.scratch:
        found["sequence"] = np.arange(shape.rows, dtype=np.int32)[::-1].copy()
    found["length"] = length
    if not case.scratch:
        found["count"] = np.full(shape.rows, shape.width, np.int32)
    if case.sinks:
        found["sinks"] = random.standard_normal(shape.heads).astype(np.float32)
    if case.evicted:
        found["free"] = shape.slots - np.maximum(length - case.evicted, 0)
        # Each head has kept its own tokens, in their order; what is in free slots says nothing.
        positions = random.integers(0, 1000, (*stored, shape.slots)).astype(np.int32)
        of_row = found.get("sequence", np.arange(shape.rows))
        for row, head in np.ndindex(shape.rows, shape.kv_heads):
            used = max(int(length[row]) - case.evicted, 0)
            positions[of_row[row], head, :used] = np.sort(random.permutation(int(length[row]))[:used])
        found["slot_position"] = positions
    return found


def exact(case: Case, given: dict[str, np.ndarray]) -> np.ndarray:
    """What the operator gives in float32."""
    tensors = {
        name: torch.from_numpy(a.astype(np.float32) if a.dtype == np.float16 else a) for name, a in given.items()
    }
    operator = torch.ops.dspark.scratch_attention if case.scratch else torch.ops.dspark.append_attention
    scoring = case.scoring
    rest = {"sinks": tensors.pop("sinks", None)}
    return operator(**tensors, scale=scoring.scale, window=scoring.window, softcap=scoring.softcap, **rest).numpy()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"S{case.width}-D{case.dim}x{case.value_dim}")
def test_attention_is_right(case: Case) -> None:
    gpu()
    kernel, workspace = case.kernel()
    given = operands(case)
    out = np.full((len(case.length), case.width, case.heads, case.value_dim), np.nan, np.float32)
    arrays = [*given.values(), out, np.full(workspace, np.nan, np.float32)]
    found, _ = call(compile_for({"attention": kernel}, ARCH)["attention"], arrays, outputs=2)
    assert error(found, exact(case, given)) < 1e-3


def test_decode_gives_the_bits_of_verify() -> None:
    gpu()
    case = Case(4, (200,), scratch=8, dim=128, value_dim=128)
    given, (verify, size) = operands(case), case.kernel()
    out = np.zeros((1, 4, case.heads, 128), np.float32)
    arrays = [*given.values(), out, np.zeros(size, np.float32)]
    verified, _ = call(compile_for({"attention": verify}, ARCH)["attention"], arrays, outputs=2)
    one = Case(1, (200,), dim=128, value_dim=128)
    decode, size = one.kernel()
    step = operands(one) | {name: given[name][:, :, :1].copy() for name in "qkv"}
    step |= {name: given[name] for name in ("k_cache", "v_cache")}
    arrays = [*step.values(), out[:, :1].copy(), np.zeros(size, np.float32)]
    decoded, _ = call(compile_for({"attention": decode}, ARCH)["attention"], arrays, outputs=2)
    assert np.array_equal(decoded[:, 0], verified[:, 0])


def test_kernels_build_without_spills(tmp_path: Path) -> None:
    positions = CacheForm(free=True, slot_position=True)
    shape = AttentionShape(1, 3, 6, 2, 16, 16, 2, 500, 0)
    scratch = AttentionShape(1, 3, 2, 2, 16, 16, 1, 500, 4)
    kernels = {
        "few": append_attention("few", shape, Scoring(0.125, 50, sinks=True), "bfloat16", positions)[0],
        "many": written_attention("many", AttentionShape(1, 70, 2, 1, 16, 16, 1, 99, 0), Scoring(0.25), "float16")[0],
        "prologue": qkv_prologue("prologue", shape, Prologue(1e-6), "bfloat16", positions),
        "commit": commit_scratch("commit", scratch, "bfloat16", positions),
    }
    report = resources(compile_for(kernels, ARCH), ARCH, tmp_path)
    assert report.count("0 bytes spill stores") == report.count("spill stores") == 6


@pytest.mark.parametrize("dim", [8, 16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("width", [1, 4, 8, 32, 2048])
def test_plans_fit_the_memory(dim: int, width: int) -> None:
    shape = AttentionShape(1, width, 32, 8, dim, dim, 1, 40960, 0)
    problem = Problem(shape, Scoring(1.0), CacheForm(), "bfloat16", "bfloat16")
    decode, prefill = decode_plan(problem), prefill_plan(problem)
    rows, heads = 2 * row_bytes(dim), row_bytes(dim)
    assert decode.stages * ROUND * rows + decode.tiles * 16 * heads <= BLOCK_MEMORY
    assert prefill.stages * prefill.stretch * rows + prefill.height * heads <= BLOCK_MEMORY
    assert decode.threads <= 512
    assert decode.tiles * decode.blocks * 16 >= problem.rows


def test_caches_that_are_refused() -> None:
    shape = AttentionShape(1, 1, 2, 1, 16, 16, 1, 100, 0)
    with pytest.raises(LoweringError, match="int8"):
        append_attention("a", shape, Scoring(1.0), "bfloat16", CacheForm(INT8))
    with pytest.raises(LoweringError, match="multiples of 8"):
        append_attention("a", AttentionShape(1, 1, 2, 1, 12, 16, 1, 100, 0), Scoring(1.0), "bfloat16")
