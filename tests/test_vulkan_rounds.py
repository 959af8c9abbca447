"""Rounds and pruned caches on Vulkan devices: the tokens of plain decoding, which are eager's or the CPU target's."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dspark_compiler import CompileConfig, SamplingParams, driver
from dspark_compiler.artifact import Artifact, StepTime, StepTimes
from dspark_compiler.compare.compiled import compiled_logits, decode_first
from dspark_compiler.models.drafters.checkpoint import write_heads
from dspark_compiler.runtime.engine import Engine
from tests.passes.test_attach_decode_heads import make_heads
from tests.tiny_models import TINY
from tests.vulkan.device import messages, need_vulkan

# Drafting always seems to pay, or tiny models would park at once.
_TIMES = StepTimes(1.0, 0.0, (StepTime(2, 1.01), StepTime(4, 1.02)))
_SIZES = {"max_seq_len": 96, "prefill_widths": (8,), "verify_width": 4, "max_batch": 2}


@pytest.fixture(autouse=True)
def _valid() -> Any:
    need_vulkan()
    yield
    assert messages() == []


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles do not time steps, which takes a slow device seconds: engines that are not paced ask for no times."""
    monkeypatch.setattr(driver, "measure_steps", lambda _: _TIMES)


def _compiled(name: str, folder: Path, target: str = "vulkan", **options: Any) -> Artifact:
    source = folder / "source"
    if not source.exists():
        TINY[name]().save_pretrained(source)
    sizes = {"dtype": "float32", "check": False} | _SIZES | options
    return driver.compile_model(str(source), CompileConfig(target=target, output=folder / target, **sizes))


def _prompts(*lengths: int) -> list[list[int]]:
    """Tokens that do not repeat: equal keys would have equal norms but for rounding."""
    return [np.random.default_rng(n).permutation(np.arange(3, 127))[:n].tolist() for n in lengths]


def _tokens(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[tuple[int, ...]]:
    return [tuple(completion.tokens) for completion in engine.complete(prompts, params)]


def test_drafted_tokens_are_those_of_eager(tmp_path: Path) -> None:
    model, heads = TINY["qwen3"](), tmp_path / "heads"
    write_heads(heads, make_heads(model, "vanilla", head_dim=16))
    artifact = _compiled("qwen3", tmp_path, heads=heads)
    info = artifact.manifest.heads
    assert info is not None
    assert info.times is not None
    timed = dataclasses.replace(artifact.manifest, heads=dataclasses.replace(info, times=_TIMES))
    unpaced, paced = Engine(artifact, paced=False), Engine(Artifact(artifact.path, timed))
    prompts, params = _prompts(13, 6), SamplingParams(max_new_tokens=30, ignore_eos=True)
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    eager = [model.generate(torch.tensor([p]), **options)[0, len(p) :].tolist() for p in prompts]
    for engine in (unpaced, paced):
        assert _tokens(engine, prompts, params) == [tuple(tokens) for tokens in eager]
    # What the others recorded leaves alone what a later one keeps.
    later = Engine(artifact, paced=False)
    later.warm_up()
    for engine in (later, unpaced, later, unpaced):
        assert _tokens(engine, prompts, params) == [tuple(tokens) for tokens in eager]
    assert unpaced.executor.device.obstacle is None
    params = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=1.0, top_p=0.9, top_k=20, seed=1)
    together = _tokens(unpaced, prompts, params)
    assert together == [_tokens(unpaced, [prompt], params)[0] for prompt in prompts]


@pytest.mark.usefixtures("untimed")
def test_sampled_tokens_with_drafts_are_those_of_the_cpu(tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    write_heads(heads, make_heads(TINY["qwen3"](), "gated", head_dim=16))
    engines = [Engine(_compiled("qwen3", tmp_path, t, heads=heads), paced=False) for t in ("vulkan", "cpu")]
    for rules in ({}, {"top_k": 30, "top_p": 0.9}, {"min_p": 0.1}):
        params = SamplingParams(max_new_tokens=25, ignore_eos=True, temperature=1.0, seed=3, **rules)  # type: ignore[arg-type]
        mine, right = (_tokens(engine, _prompts(13, 6), params) for engine in engines)
        assert mine == right


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"kv_policy": "snapkv+h2o", "kv_dtype": "float8_e4m3"}),
    ],
)
def test_pruned_caches_with_drafts_give_the_tokens_of_the_cpu(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    # A verify of 5 sequences has more rows than products stream otherwise, and decode's bits all the same.
    options = {"kv_budget": 40, "heads": Path("ngram"), "max_seq_len": 200, "max_batch": 5} | options
    device, host = (Engine(_compiled(name, tmp_path, target, **options), paced=False) for target in ("vulkan", "cpu"))
    prompts, params = _prompts(60, 11), SamplingParams(max_new_tokens=24, ignore_eos=True)
    assert device.executor.draws
    device.warm_up()
    assert _tokens(device, prompts, params) == _tokens(host, prompts, params)
    executor, tokens = device.executor, _prompts(90)[0]
    verified = np.concatenate([chunk.copy() for chunk in compiled_logits(executor, tokens)])
    decoded = [decode_first(executor, token, position).copy() for position, token in enumerate(tokens)]
    np.testing.assert_array_equal(verified, np.stack(decoded))
