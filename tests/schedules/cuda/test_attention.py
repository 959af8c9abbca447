"""Attention on Nvidia GPUs: plans fit the chip, kernels build without spills, and are right where there is a GPU."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from dspark_compiler.errors import LoweringError
from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.graph.reference import quantized
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.cache_storage import E4M3FN, FLOAT32, INT8, Storage
from dspark_compiler.schedules.cuda.attention import append_attention, scratch_attention, written_attention
from dspark_compiler.schedules.cuda.attention_plan import LINES, decode_plan
from dspark_compiler.schedules.cuda.attention_prefill import prefill_plan
from dspark_compiler.schedules.cuda.attention_rows import Problem, row_bytes
from dspark_compiler.schedules.cuda.attention_stages import stages_of
from dspark_compiler.schedules.cuda.cache_writes import commit_scratch
from dspark_compiler.schedules.cuda.qkv_prologue import Prologue, qkv_prologue
from tests.schedules.cuda.gpu import call, compile_for, error, gpu, report_of

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
    storage: Storage = FLOAT32  # a byte an element, or fp16

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
        return CacheForm(self.storage, free=bool(self.evicted), slot_position=bool(self.evicted))

    @property
    def problem(self) -> Problem:
        return Problem(self.shape, self.scoring, self.form, "float16", "float32")

    @property
    def out(self) -> np.ndarray:
        return np.full((len(self.length), self.width, self.heads, self.value_dim), np.nan, np.float32)

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
    Case(2, (130, 30), storage=INT8, dim=128, value_dim=96),
    Case(5, (200,), scratch=8, evicted=20, window=100, dim=24, value_dim=16, heads=12, storage=E4M3FN),
    Case(40, (100, 7), scratch=40, window=90, softcap=5.0, storage=INT8),
    Case(70, (120,), sinks=True, dim=64, value_dim=80, storage=E4M3FN),
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
        for name, dim in (("k", shape.head_dim), ("v", shape.value_dim)) if count else ():
            found[f"{name}_{place}"] = normal(*stored, count, dim)
    length = np.array(case.length, np.int32)
    if case.scratch:
        found["length"] = length
    else:
        sequence, count = np.arange(shape.rows, dtype=np.int32)[::-1].copy(), np.full(shape.rows, shape.width, np.int32)
        found |= {"sequence": sequence, "length": length, "count": count}
    if case.sinks:
        found["sinks"] = random.standard_normal(shape.heads).astype(np.float32)
    if case.evicted:
        found["free"] = shape.slots - np.maximum(length - case.evicted, 0)
        found["slot_position"] = kept_positions(case, found.get("sequence", np.arange(shape.rows)))
    return with_codes(case.storage, found) if case.storage.scaled else found


def with_codes(storage: Storage, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Caches as kernels see codes, and their scales behind all else."""
    kind = torch.int8 if storage == INT8 else torch.float8_e4m3fn
    found, scales = dict(tensors), {}
    for name in [name for name in tensors if name.endswith(("_cache", "_scratch"))]:
        codes, scale = quantized(torch.from_numpy(tensors[name].astype(np.float32)), kind)
        found[name] = codes.view(torch.int8).numpy().view(storage.dtype)
        scales[name.replace("_cache", "") + "_scale"] = scale.numpy()
    return found | scales


def kept_positions(case: Case, of_row: np.ndarray) -> np.ndarray:
    """Each head has kept its own tokens, in their order; what is in free slots says nothing."""
    random, shape = np.random.default_rng(case.width), case.shape
    positions = random.integers(0, 1000, (shape.batch, shape.kv_heads, shape.slots)).astype(np.int32)
    for row, head in np.ndindex(shape.rows, shape.kv_heads):
        used = max(case.length[row] - case.evicted, 0)
        positions[of_row[row], head, :used] = np.sort(random.permutation(case.length[row])[:used])
    return positions


def exact(case: Case, given: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """What the operator gives in float32, and its tensors afterwards."""
    tensors = {name: as_torch(array) for name, array in given.items()}
    operator = torch.ops.dspark.scratch_attention if case.scratch else torch.ops.dspark.append_attention
    scoring = case.scoring
    rest = {"sinks": tensors.pop("sinks", None)}
    out = operator(**tensors, scale=scoring.scale, window=scoring.window, softcap=scoring.softcap, **rest)
    return out.numpy(), tensors


def as_torch(array: np.ndarray) -> torch.Tensor:
    """As operators take it: fp16 as float32, e4m3's bits as what they are."""
    if array.dtype == np.uint8:
        return torch.from_numpy(array.copy()).view(torch.float8_e4m3fn)
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array.copy())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"S{case.width}-D{case.dim}-{case.storage.dtype}")
def test_attention_is_right(case: Case) -> None:
    gpu()
    kernel, workspace = case.kernel()
    given = operands(case)
    arrays = [*given.values(), case.out, np.full(workspace, np.nan, np.float32)]
    *left, found, _ = call(compile_for({"attention": kernel}, ARCH)["attention"], arrays, outputs=len(arrays))
    right, tensors = exact(case, given)
    assert error(found, right) < 1e-3
    for name, array in zip(given, left, strict=True):
        if name in tensors:
            assert torch.equal(as_torch(array), tensors[name]), name


WIDE_CASES = [
    Case(70, (120, 10), window=64, sinks=True, dim=64, value_dim=128),
    Case(300, (50,), evicted=30, window=150, dim=128, value_dim=64, slots=700, heads=14),
    Case(130, (0, 300), softcap=5.0, dim=64, value_dim=64, slots=600, heads=2),
]


@pytest.mark.parametrize("case", WIDE_CASES, ids=lambda case: f"S{case.width}-D{case.dim}")
def test_warpgroups_give_the_same(case: Case) -> None:
    gpu()
    given = operands(case)
    right, tensors = exact(case, given)
    sequence, length, count = (given[name] for name in ("sequence", "length", "count"))
    used = length - np.maximum(np.minimum(length, case.evicted), 0)
    for name in ("k_cache", "v_cache"):
        given[name] = tensors[name].numpy().astype(np.float16)
        for row, of in enumerate(sequence):  # nobody reads what lies in free slots
            given[name][of, :, used[row] + count[row] :] = np.nan
    if case.evicted:
        given["slot_position"] = tensors["slot_position"].numpy()
    given["q"] = given["q"].astype(np.float16)
    build = {"out_dtype": "float32", "arch": ARCH}
    kernel, workspace = written_attention("attention", case.shape, case.scoring, "float16", case.form, **build)
    arrays = [*(array for name, array in given.items() if name not in "kv"), case.out, np.zeros(workspace, np.float32)]
    found = call(compile_for({"attention": kernel}, ARCH)["attention"], arrays, outputs=2)[0]
    assert error(found, right) < 1e-3


@pytest.mark.parametrize("storage", [FLOAT32, INT8, E4M3FN], ids=lambda storage: storage.dtype)
def test_decode_gives_the_bits_of_verify(storage: Storage) -> None:
    gpu()
    verify = Case(8, (200,), scratch=8, dim=128, value_dim=128, storage=storage)
    decode = Case(1, (200,), dim=128, value_dim=128, storage=storage)
    given = operands(verify)
    step = operands(decode) | {name: given[name][:, :, :1].copy() for name in "qkv"}
    step |= {name: given[name] for name in ("k_cache", "v_cache", "k_scale", "v_scale") if name in given}
    outs = []
    for case, operands_of in ((verify, given), (decode, step)):
        kernel, workspace = case.kernel()
        arrays = [*operands_of.values(), case.out, np.full(workspace, np.nan, np.float32)]
        outs.append(call(compile_for({"attention": kernel}, ARCH)["attention"], arrays, outputs=2)[0])
    assert np.array_equal(outs[0][:, 0], outs[1][:, 0])


@pytest.mark.parametrize("layers", [1, 3])
def test_scratch_is_moved_as_it_is(layers: int) -> None:
    gpu()
    case = Case(4, (30, 7), scratch=4, storage=E4M3FN)
    every = []
    for _ in range(layers):
        given = {name: array for name, array in operands(case).items() if name not in "qkv"}
        every.append(
            {name: given[name] for name in ("k_cache", "v_cache", "k_scratch", "v_scratch", "length")}
            | {"accepted": np.array([3, 0], np.int32)}
            | {name: given[name] for name in given if name.endswith("_scale")}
        )
    kernel = commit_scratch("commit", case.shape, "float16", case.form, layers)
    arrays = [array for given in every for array in given.values()]
    left = call(compile_for({"commit": kernel}, ARCH)["commit"], arrays, outputs=len(arrays))
    for number, given in enumerate(every):
        tensors = {name: as_torch(array) for name, array in given.items()}
        torch.ops.dspark.commit_scratch(**tensors)
        for (name, tensor), array in zip(tensors.items(), left[number * len(given) :], strict=False):
            assert torch.equal(as_torch(array), tensor), name


def test_kernels_build_without_spills() -> None:
    positions = CacheForm(free=True, slot_position=True)
    codes = CacheForm(INT8, free=True, slot_position=True)
    few = AttentionShape(1, 3, 6, 2, 16, 16, 2, 500, 0)
    split = AttentionShape(1, 4, 10, 2, 16, 16, 1, 500, 4)
    many = AttentionShape(1, 40, 2, 1, 16, 16, 1, 99, 0)
    wide = AttentionShape(1, 40, 2, 1, 128, 128, 1, 99, 0)
    kernels = {
        "few": append_attention("few", few, Scoring(0.125, 50, sinks=True), "bfloat16", positions)[0],
        "split": scratch_attention("split", split, Scoring(0.125), "float16", codes)[0],
        "many": written_attention("many", many, Scoring(0.25), "float16", CacheForm(E4M3FN))[0],
        "wide": written_attention("wide", wide, Scoring(0.25), "float16", arch=ARCH)[0],
        "prologue": qkv_prologue("prologue", few, Prologue(1e-6), "bfloat16", codes),
        "commit": commit_scratch("commit", split, "bfloat16", codes, layers=16),
    }
    report = report_of(kernels, ARCH)
    assert report.kernels == 3 + 3 + 2 + 1 + 1 + 1
    assert not report.spills
    assert "wgmma" not in report.resources  # C7510: products made to wait for one another


@pytest.mark.parametrize("dim", [8, 16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("width", [1, 4, 8, 32, 2048])
@pytest.mark.parametrize("storage", [FLOAT32, INT8], ids=lambda storage: storage.dtype)
def test_plans_fit_the_memory(dim: int, width: int, storage: Storage) -> None:
    shape = AttentionShape(1, width, 32, 8, dim, dim, 1, 40960, 0)
    problem = Problem(shape, Scoring(1.0), CacheForm(storage), "bfloat16", "bfloat16")
    decode, prefill, stages = decode_plan(problem), prefill_plan(problem), stages_of(problem)
    rows, heads = 2 * row_bytes(dim), row_bytes(dim)
    ring = LINES * (decode.stages * stages.bytes + stages.opened)
    assert ring + decode.tiles * 16 * heads <= BLOCK_MEMORY
    assert prefill.stages * prefill.stretch * rows + prefill.height * heads <= BLOCK_MEMORY
    assert decode.threads <= 512
    assert decode.tiles * decode.blocks * 16 >= problem.rows


def test_caches_that_are_refused() -> None:
    shape = AttentionShape(1, 1, 2, 1, 16, 16, 1, 100, 0)
    with pytest.raises(LoweringError, match="lower --max-seq-len"):
        append_attention("a", replace(shape, slots=1 << 28), Scoring(1.0), "bfloat16")
    with pytest.raises(LoweringError, match="multiples of 8"):
        append_attention("a", AttentionShape(1, 1, 2, 1, 12, 16, 1, 100, 0), Scoring(1.0), "bfloat16")
