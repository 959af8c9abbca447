"""Attention from the projection on, in one launch: against the launches it stands for, and decode against verify."""

from dataclasses import replace

import numpy as np
import pytest

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.simt.attention import written_attention
from dspark_compiler.schedules.simt.attention_step import counters, is_step, step_attention
from dspark_compiler.schedules.simt.awaited import NOTHING
from dspark_compiler.schedules.simt.eighths import EIGHTHS, UNIT
from dspark_compiler.schedules.simt.qkv_prologue import Prologue, qkv_prologue
from tests.backends.vulkan.shaders import run
from tests.vulkan.device import need_vulkan

_WORK = Prologue(1e-6, rope=True)
_DECODE = AttentionShape(1, 1, 4, 2, 32, 16, 2, 600, 0)
_VERIFY = replace(_DECODE, rows=2, width=5, scratch=8)
CASES = {
    "one part": (_DECODE, Scoring(0.2), CacheForm(), [20]),
    "three parts": (_DECODE, Scoring(0.2, softcap=4.0), CacheForm(), [550]),
    "new tokens in two parts": (_VERIFY, Scoring(0.2, sinks=True), CacheForm(), [254, 0]),
    "new tokens in two turns of a part": (_VERIFY, Scoring(0.2), CacheForm(), [62, 445]),
    "a turn of nothing but a new token": (_DECODE, Scoring(0.2), CacheForm(), [64]),
    "a turn and a part of nothing but new tokens": (_VERIFY, Scoring(0.2), CacheForm(), [128, 256]),
    "as many new tokens as teams": (replace(_VERIFY, width=16, scratch=16), Scoring(0.2), CacheForm(), [55, 3]),
    "slots that keep positions": (
        _VERIFY,
        Scoring(0.2, window=70),
        CacheForm(free=True, slot_position=True),
        [540, 90],
    ),
}
LONG = {
    "more parts than are on their way together": (replace(_DECODE, slots=3000), Scoring(0.2), CacheForm(), [2900]),
    "more parts than are awaited": (replace(_VERIFY, rows=1, slots=4500), Scoring(0.2), CacheForm(), [4400]),
}
Arrays = dict[str, np.ndarray]


def operands(shape: AttentionShape, scoring: Scoring, form: CacheForm, length: list[int]) -> Arrays:
    """All but queries, counters, output and workspace, by name, in the kernels' order."""
    random = np.random.default_rng(3)
    columns = (shape.heads + shape.kv_heads) * shape.head_dim + shape.kv_heads * shape.value_dim
    angles = random.standard_normal((shape.rows, 1, shape.width, shape.head_dim)).astype(np.float32)
    places = (shape.batch, shape.kv_heads)

    def stored(count: int, dim: int) -> np.ndarray:
        return random.standard_normal((*places, count, dim)).astype(np.float16)

    given: Arrays = {
        "x": random.standard_normal((shape.rows * shape.width, columns)).astype(np.float32),
        "q_weight": random.standard_normal(shape.head_dim).astype(np.float32),
        "k_weight": random.standard_normal(shape.head_dim).astype(np.float32),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "k_cache": stored(shape.slots, shape.head_dim),
        "v_cache": stored(shape.slots, shape.value_dim),
    }
    if shape.scratch:
        given |= {
            "k_scratch": stored(shape.scratch, shape.head_dim),
            "v_scratch": stored(shape.scratch, shape.value_dim),
        }
        given["length"] = np.array(length, np.int32)
    else:
        ones = np.ones(shape.rows, np.int32)
        given |= {"sequence": ones, "length": np.array(length, np.int32), "count": ones}
    if form.free:
        given["free"] = np.array([shape.slots - 300] * shape.rows, np.int32)
    if form.slot_position:
        given["slot_position"] = random.integers(0, 540, (*places, shape.slots)).astype(np.int32)
    if scoring.sinks:
        given["sinks"] = random.standard_normal(shape.heads).astype(np.float32)
    return given


def one_launch(shape: AttentionShape, scoring: Scoring, form: CacheForm, given: Arrays, **how: bool) -> Arrays:
    """All tensors after ``step_attention``."""
    kernel, workspace = step_attention("main", shape, scoring, _WORK, "float16", form, **how)
    dtype, awaits = EIGHTHS if how.get("eighths") else "float32", how.get("awaits", False)
    out = np.full((shape.rows, shape.width, shape.heads, shape.value_dim), np.nan, dtype)
    arrays = given | {
        "arrived": np.full(counters(shape), NOTHING if awaits else 0, np.uint32),
        "out": out,
        "workspace": np.full(workspace, 0xFFFFFFFF, np.uint32),
    }
    return dict(zip(arrays, run(kernel, *arrays.values()), strict=True))


def launch_by_launch(shape: AttentionShape, scoring: Scoring, form: CacheForm, given: Arrays) -> Arrays:
    """The same by the kernels for many tokens."""
    prologue = {name: value for name, value in given.items() if name != "sinks"}
    prologue["q"] = np.zeros((shape.rows, shape.heads, shape.width, shape.head_dim), np.float32)
    after = run(qkv_prologue("main", shape, _WORK, "float16", form), *prologue.values())
    stored = dict(zip(prologue, after, strict=True))
    names = [name for name in given if name not in ("x", "q_weight", "k_weight", "cos", "sin", "sinks")]
    control = names.index("count" if "count" in names else "length") + 1
    order = ["q", *names[:control], *(["sinks"] if scoring.sinks else []), *names[control:]]
    kernel, workspace = written_attention("main", shape, scoring, "float16", form)
    out = np.zeros((shape.rows, shape.width, shape.heads, shape.value_dim), np.float32)
    arrays = {
        name: (stored | given | {"q": stored["q"]})[name] if name not in stored else stored[name] for name in order
    }
    arrays |= {"out": out, "workspace": np.zeros(workspace, np.float32)}
    return stored | dict(zip(arrays, run(kernel, *arrays.values()), strict=True))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_launch_has_the_bits_of_several(case: tuple[AttentionShape, Scoring, CacheForm, list[int]]) -> None:
    need_vulkan()
    shape, scoring, form, length = case
    assert is_step(shape, "float16")
    given = operands(shape, scoring, form, length)
    found, wanted = (how(shape, scoring, form, given) for how in (one_launch, launch_by_launch))
    _compare(found, wanted, given)
    assert not found["arrived"].any()


@pytest.mark.parametrize(
    ("name", "overlap"), [("new tokens in two parts", "0"), ("new tokens in two parts", "1"), *((n, "1") for n in LONG)]
)
def test_parts_that_are_awaited_have_the_same_bits(name: str, overlap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need_vulkan()
    monkeypatch.setenv("DSPARK_VULKAN_OVERLAP", overlap)
    shape, scoring, form, length = (CASES | LONG)[name]
    given = operands(shape, scoring, form, length)
    found = one_launch(shape, scoring, form, given, awaits=True)
    _compare(found, launch_by_launch(shape, scoring, form, given), given)
    assert (found["arrived"] == NOTHING).all()


def test_an_output_in_eighths() -> None:
    need_vulkan()
    shape, scoring, form, length = CASES["new tokens in two parts"]
    given = operands(shape, scoring, form, length)
    found = one_launch(shape, scoring, form, given, awaits=True, eighths=True)["out"]
    wanted = one_launch(shape, scoring, form, given, awaits=True)["out"]
    np.testing.assert_array_equal(found, (wanted / UNIT).astype(np.float16))


def _compare(found: Arrays, wanted: Arrays, given: Arrays) -> None:
    for name in ("out", "k_cache", "v_cache", "k_scratch", "v_scratch", "slot_position"):
        if name in given or name == "out":
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_calls_of_many_tokens_take_several_launches() -> None:
    assert not is_step(replace(_DECODE, width=17), "float16")  # a team would have two new ones
    assert not is_step(replace(_DECODE, width=16, head_dim=256, value_dim=256), "float16")
