"""Attention over caches that evict or quantize, against the reference operators."""

import functools
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.graph.reference import quantized
from dspark_compiler.schedules import attention
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring, key_cache_shape
from dspark_compiler.schedules.cache_storage import E4M3FN, FLOAT32, INT8, STORAGES, Storage
from dspark_compiler.schedules.isa import VectorIsa
from tests.schedules.kernels import MACHINES, WIDEST, build, normal

dspark = torch.ops.dspark

NARROWEST = next(iter(MACHINES))
TYPES = {FLOAT32: torch.float32, INT8: torch.int8, E4M3FN: torch.float8_e4m3fn}
SINKS = torch.linspace(-1, 1, 4)


@dataclass(frozen=True)
class Case:
    """``length`` tokens of each sequence are confirmed, ``free`` slots are free; sizes as in AttentionShape."""

    form: CacheForm
    width: int
    length: tuple[int, ...]
    free: tuple[int, ...]
    slots: int = 150
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    dims: tuple[int, int] = (16, 24)
    isa: VectorIsa = WIDEST
    heads: int = field(default=4, init=False)
    kv_heads: int = field(default=2, init=False)
    scratch: int = field(default=9, init=False)

    def __str__(self) -> str:
        given = ("free" if self.form.free else "") + ("-position" if self.form.slot_position else "")
        return f"{type(self.form.storage).__name__}-{given}-S{self.width}-w{self.window}-lanes{self.isa.lanes}"

    @property
    def batch(self) -> int:
        return len(self.length)

    @property
    def scoring(self) -> Scoring:
        return Scoring(0.3, self.window, self.softcap, self.sinks)

    def shape(self, scratch: int = 0) -> AttentionShape:
        heads, (k, v) = (self.heads, self.kv_heads), self.dims
        return AttentionShape(self.batch, self.width, *heads, k, v, self.batch, self.slots, scratch)

    def used(self) -> list[int]:
        pairs = zip(self.length, self.free, strict=True)
        return [min(n, self.slots - f) if self.form.free else n for n, f in pairs]


class Cache:
    """States of a case by the operators' names, with slots in use that each head chose for itself."""

    def __init__(self, case: Case) -> None:
        self.case = case
        rows = (case.batch, case.kv_heads)
        self.states: dict[str, torch.Tensor] = {}
        for letter, dim in zip("kv", case.dims, strict=True):
            self._store(letter, "cache", "", normal(*rows, case.slots, dim, seed=ord(letter)))
            self._store(letter, "scratch", "_scratch", normal(*rows, case.scratch, dim, seed=2 * ord(letter)))
        if case.form.slot_position:
            self.states["slot_position"] = self._positions()

    def _store(self, letter: str, kind: str, infix: str, values: np.ndarray) -> None:
        tensor, dtype = torch.from_numpy(values), TYPES[self.case.form.storage]
        if self.case.form.storage.scaled:
            tensor, self.states[f"{letter}{infix}_scale"] = quantized(tensor, dtype)
        self.states[f"{letter}_{kind}"] = tensor

    def _positions(self) -> torch.Tensor:
        rng = np.random.default_rng(0)
        positions = rng.integers(0, 999, (self.case.batch, self.case.kv_heads, self.case.slots)).astype(np.int32)
        for b, (length, used) in enumerate(zip(self.case.length, self.case.used(), strict=True)):
            for g in range(self.case.kv_heads):
                positions[b, g, :used] = np.sort(rng.permutation(length)[:used])
        return torch.from_numpy(positions)

    def physical(self) -> dict[str, np.ndarray]:
        """What a kernel gets; keys in panels, floats of one byte as their bits."""
        found = {name: _bits(tensor) for name, tensor in self.states.items()}
        keys = found["k_cache"]
        b, g, c, d = keys.shape
        lanes = self.case.isa.lanes
        padded = np.zeros((b, g, key_cache_shape(b, g, c, d, self.case.isa)[2] * lanes, d), keys.dtype)
        padded[:, :, :c] = keys
        found["k_cache"] = np.ascontiguousarray(padded.reshape(b, g, -1, lanes, d).swapaxes(-1, -2))
        return found

    def copy(self) -> "Cache":
        other = Cache.__new__(Cache)
        other.case, other.states = self.case, {name: tensor.clone() for name, tensor in self.states.items()}
        return other


def _bits(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.uint8) if tensor.dtype is torch.float8_e4m3fn else tensor).numpy().copy()


def _same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def _int32(values: tuple[int, ...] | list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _tokens(case: Case) -> dict[str, torch.Tensor]:
    k, v = case.dims
    shapes = {"q": (case.heads, k), "k": (case.kv_heads, k), "v": (case.kv_heads, v)}
    return {n: torch.from_numpy(normal(case.batch, h, case.width, d, seed=d)) for n, (h, d) in shapes.items()}


_CACHE = ("k_cache", "v_cache")
_SCRATCH = ("k_scratch", "v_scratch")
_SLOTS = ("free", "slot_position", "k_scale", "v_scale")
_SCRATCH_SCALES = ("k_scratch_scale", "v_scratch_scale")


def _values(case: Case, cache: Cache, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    free = {"free": _int32(case.free)} if case.form.free else {}
    sinks = {"sinks": SINKS} if case.sinks else {}
    return cache.states | inputs | free | sinks


def _reference(op, case: Case, cache: Cache, inputs: dict[str, torch.Tensor]):
    """The operator on its own states, which it changes."""
    s = case.scoring
    options = {"scale": s.scale, "window": s.window, "softcap": s.softcap, "sinks": None}
    values = options | _values(case, cache, inputs)
    names = [a.name for a in op.default._schema.arguments]
    return op(**{name: values[name] for name in names if name in values})


def _run(build_kernel, case: Case, names, cache: Cache, inputs: dict[str, torch.Tensor], scratch: int, out: bool):
    """The kernel on the physical states; returns them as it leaves them, and its output."""
    values = {n: t.numpy().copy() for n, t in _values(case, cache, inputs).items() if n not in cache.states}
    values |= cache.physical()
    kernel = _built(build_kernel, case.shape(scratch), case.scoring if out else None, case.isa, case.form)
    arrays = [values[name] for name in names if name in values]
    result = np.full((case.batch, case.width, case.heads, case.dims[1]), np.nan, np.float32)
    kernel(*arrays, *([result] if out else []))
    return values, result


@functools.cache
def _built(build_kernel, shape: AttentionShape, scoring: Scoring | None, isa: VectorIsa, form: CacheForm):
    return build(build_kernel("kernel", shape, *([scoring] if scoring else []), isa, form), isa)


def append(case: Case, cache: Cache, inputs: dict[str, torch.Tensor]):
    names = ("q", "k", "v", *_CACHE, "sequence", "length", "count", "sinks", *_SLOTS)
    return _run(attention.append_attention, case, names, cache, inputs, 0, True)


def verify(case: Case, cache: Cache, inputs: dict[str, torch.Tensor]):
    names = ("q", "k", "v", *_CACHE, *_SCRATCH, "length", "sinks", *_SLOTS, *_SCRATCH_SCALES)
    return _run(attention.scratch_attention, case, names, cache, inputs, case.scratch, True)


EVICTS = CacheForm(free=True, slot_position=True)
CASES = [
    Case(EVICTS, 1, (400, 3), (30, 30)),
    Case(EVICTS, 6, (400, 100), (19, 0), window=150, softcap=3.0),
    Case(EVICTS, 3, (120, 20), (30, 30), window=40, sinks=True, isa=NARROWEST),
    Case(CacheForm(INT8), 1, (128, 145), (0, 0)),
    Case(CacheForm(INT8), 5, (120, 0), (0, 0), window=20, sinks=True, isa=NARROWEST, dims=(6, 10)),
    Case(CacheForm(E4M3FN), 6, (127, 3), (0, 0), softcap=2.0),
    Case(CacheForm(E4M3FN, free=True, slot_position=True), 2, (300, 9), (13, 150), window=250),
    Case(CacheForm(INT8, free=True, slot_position=True), 7, (300, 149), (20, 12), window=120, sinks=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_append_attention_is_the_reference(case: Case) -> None:
    cache = Cache(case)
    count = [case.width] + [max(case.width - 1, 1)] * (case.batch - 1)
    inputs = _tokens(case) | {
        "sequence": _int32(list(range(case.batch))[::-1]),
        "length": _int32(case.length[::-1]),
        "count": _int32(count),
    }
    case_of_rows = replace(case, free=case.free[::-1])
    reference = cache.copy()
    expected = _reference(dspark.append_attention, case_of_rows, reference, inputs).numpy()
    states, out = append(case_of_rows, cache, inputs)
    _same(states, reference.physical())
    for row, real in enumerate(count):
        np.testing.assert_allclose(out[row, :real], expected[row, :real], rtol=1e-4, atol=1e-5)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scratch_attention_is_the_reference_and_append_bit_for_bit(case: Case) -> None:
    cache, inputs = Cache(case), _tokens(case) | {"length": _int32(case.length)}
    reference = cache.copy()
    expected = _reference(dspark.scratch_attention, case, reference, inputs).numpy()
    states, out = verify(case, cache, inputs)
    _same(states, reference.physical())
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    rows = {"sequence": _int32(list(range(case.batch))), "count": _int32([case.width] * case.batch)}
    _, appended = append(case, cache, inputs | rows)
    np.testing.assert_array_equal(out, appended)


@pytest.mark.parametrize("case", [case for case in CASES if case.width > 2], ids=str)
def test_a_token_is_the_same_from_decode_and_from_a_chunk(case: Case) -> None:
    cache, inputs = Cache(case), _tokens(case)
    rows = {"sequence": _int32(list(range(case.batch)))}
    whole = {"length": _int32(case.length), "count": _int32([case.width] * case.batch)}
    _, chunk = append(case, cache, inputs | rows | whole)
    for i in range(case.width):
        used = [u + i for u in case.used()]
        free = tuple(case.slots - u for u in used) if case.form.free else case.free
        one = replace(case, width=1, free=free, length=tuple(n + i for n in case.length))
        token = {name: tensor[:, :, i : i + 1].contiguous() for name, tensor in inputs.items()}
        step = token | rows | {"length": _int32(one.length), "count": _int32([1] * case.batch)}
        _, out = append(one, cache, step)
        np.testing.assert_array_equal(out[:, 0], chunk[:, i])
        one_cache = cache.copy()
        _reference(dspark.append_attention, one, one_cache, step)
        cache = one_cache


@pytest.mark.parametrize("case", CASES, ids=str)
def test_commit_moves_stored_tokens_with_scales_and_positions(case: Case) -> None:
    cache = Cache(case)
    inputs = {"length": _int32(case.length), "accepted": _int32([4, 0])}
    reference = cache.copy()
    _reference(dspark.commit_scratch, case, reference, inputs)
    names = (*_CACHE, *_SCRATCH, "length", "accepted", *_SLOTS, *_SCRATCH_SCALES)
    states, _ = _run(attention.commit_scratch, case, names, cache, inputs, case.scratch, False)
    _same(states, reference.physical())


def test_storages_are_named_as_torch_names_types() -> None:
    assert {name: TYPES[storage] for name, storage in STORAGES.items()} == {
        str(dtype).removeprefix("torch."): dtype for dtype in TYPES.values()
    }
    assert all(isinstance(storage, Storage) for storage in TYPES)
