"""Attention summed by slot, against the reference operator."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.schedules.attention_mass import attention_mass
from dspark_compiler.schedules.attention_shape import Scoring
from dspark_compiler.schedules.cache_storage import E4M3FN, FLOAT32, INT8, Storage
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.slot_shape import CacheShape
from tests.schedules.kernels import MACHINES, WIDEST, build, normal
from tests.schedules.stored import kernel_array, scales, stored
from tests.schedules.test_attention import panels

NARROWEST = next(iter(MACHINES))
BATCH, SEQUENCE = 2, 1


@dataclass(frozen=True)
class Case:
    """Sizes of the cache and the ring, and the state of the sequence."""

    length: int
    places: int = 8
    last: int = 8
    slots: int = 37
    free: int = 0
    pending: int | None = None
    heads: int = 4
    groups: int = 2
    dim: int = 16
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    storage: Storage = FLOAT32


CASES = {
    "wrapped ring, full cache": Case(length=500),
    "one query": Case(length=100, last=1),
    "more than the ring": Case(length=100, places=5, last=64, heads=6),
    "short sequence": Case(length=3),
    "empty sequence": Case(length=0),
    "one token": Case(length=1, slots=1, heads=2),
    "free slots": Case(length=500, free=9, dim=6),
    "pending": Case(length=500, pending=3, places=13, last=13),
    "nothing pending": Case(length=500, pending=0),
    "all pending": Case(length=30, pending=30, places=16, last=12),
    "sliding window": Case(length=500, window=11, places=7),
    "window past all slots": Case(length=500, window=1000),
    "softcap and sinks": Case(length=90, softcap=2.0, sinks=True, places=21, last=21, groups=1),
    "int8": Case(length=500, storage=INT8, free=3),
    "e4m3": Case(length=20, storage=E4M3FN, softcap=3.0),
    "many slots": Case(length=2000, slots=300, places=64, last=64, sinks=True, window=700, dim=64),
}


def positions(case: Case) -> np.ndarray:
    """Rising positions of live slots, the newest tokens among them; something in the others that must not count."""
    used = min(case.length, case.slots - case.free)
    rng = np.random.default_rng(0)
    result = np.zeros((BATCH, case.groups, case.slots), np.int32)
    newest = min(used, case.places)
    for row in result.reshape(-1, case.slots):
        row[: used - newest] = np.sort(rng.choice(max(case.length - newest, 1), used - newest, replace=False))
        row[used - newest : used] = np.arange(case.length - newest, case.length)
    return result


@pytest.mark.parametrize("isa", [NARROWEST, WIDEST])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_is_the_reference(isa: VectorIsa, case: Case) -> None:
    ring = normal(BATCH, case.heads, case.places, case.dim)
    keys, scale = stored(normal(BATCH, case.groups, case.slots, case.dim, seed=1), case.storage)
    sinks = normal(case.heads, seed=2)
    numbers = [np.array([n], np.int32) for n in (SEQUENCE, case.length, case.free)]
    pending = [] if case.pending is None else [np.array([case.pending], np.int32)]
    scoring = Scoring(case.dim**-0.5, case.window, case.softcap, case.sinks)
    as_torch = torch.from_numpy
    expected = torch.ops.dspark.attention_mass(
        as_torch(ring),
        keys,
        scale,
        *map(as_torch, (positions(case), *numbers)),
        as_torch(pending[0]) if pending else None,
        case.last,
        scoring.scale,
        scoring.window,
        scoring.softcap,
        as_torch(sinks) if scoring.sinks else None,
    ).numpy()
    shape = CacheShape(BATCH, case.groups, case.slots, case.dim, case.dim, case.storage)
    function = attention_mass(
        "mass",
        shape,
        scoring,
        isa,
        heads=case.heads,
        places=case.places,
        last=case.last,
        bounded=case.pending is not None,
    )
    out = np.full((1, case.heads, case.slots), np.nan, np.float32)
    extra = [*pending, *([sinks] if case.sinks else [])]
    cache = panels(kernel_array(keys), isa), *scales(scale), positions(case)
    build(function, isa)(ring, *cache, *numbers, *extra, out)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=1e-6)


def test_queries_that_see_no_slot_pay_nothing() -> None:
    isa = NARROWEST
    function = attention_mass(
        "mass", CacheShape(1, 1, 5, 4, 4), Scoring(0.5, window=2), isa, heads=1, places=3, last=3, bounded=False
    )
    out = np.full((1, 1, 5), np.nan, np.float32)
    numbers = [np.array([n], np.int32) for n in (0, 100, 0)]
    old = np.arange(5, dtype=np.int32).reshape(1, 1, 5)
    build(function, isa)(normal(1, 1, 3, 4), panels(normal(1, 1, 5, 4), isa), old, *numbers, out)
    np.testing.assert_array_equal(out, 0)
