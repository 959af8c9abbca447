"""A quantized cache, from compile to tokens out of the torch-free executor, against the same program run by torch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dspark_compiler import CompileConfig, SamplingParams
from dspark_compiler.config import KVDType
from dspark_compiler.driver import compile_model
from dspark_compiler.frontend.capture import capture
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from dspark_compiler.runtime.engine import Engine, load
from tests.program_runner import ProgramRunner
from tests.tiny_models import TINY
from tests.traces import one_process

_STORED = {"int8": "int8", "float8_e4m3": "uint8"}
_CASES = [("llama", "int8"), ("mistral", "float8_e4m3"), ("gpt_oss", "int8")]


def _compiled(name: str, kind: KVDType, folder: Path) -> tuple[ProgramRunner, Engine]:
    model = TINY[name]()
    config = CompileConfig(
        output=folder / "model.dspark",
        kv_dtype=kind,
        max_seq_len=64,
        max_batch=2,
        prefill_widths=(8,),
        verify_width=4,
        check=False,
    )
    program, _ = run_passes(default_pipeline(config), capture(model, config))
    model.save_pretrained(folder / "source")
    compile_model(str(folder / "source"), config)
    return ProgramRunner(program), load(folder / "model.dspark")


@pytest.mark.parametrize(("name", "kind"), [pytest.param(*case, marks=one_process(case[0])) for case in _CASES])
def test_quantized_cache(name: str, kind: KVDType, tmp_path: Path) -> None:
    reference, engine = _compiled(name, kind, tmp_path)
    manifest = engine.artifact.manifest
    assert manifest.kv.dtype == kind
    assert manifest.states["k_cache.0"].dtype == manifest.states["v_scratch.1"].dtype == _STORED[kind]
    assert manifest.states["k_scale.0"].dtype == "float32"

    prompt = torch.randint(3, 100, (13,), generator=torch.Generator().manual_seed(1)).tolist()
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    tokens = list(engine.complete([prompt], params)[0].tokens)
    logits = [reference.prefill(0, prompt)]
    logits += [reference.decode([token, None])[0] for token in tokens[:-1]]
    _check_greedy(tokens, torch.stack(logits).numpy())
    _check_verify(engine, prompt, tokens)


def _check_greedy(tokens: list[int], logits: np.ndarray) -> None:
    """Each token is the reference's, up to what a code that rounds the other way can do."""
    gap = logits.max(-1) - logits[np.arange(len(tokens)), tokens]
    assert gap.max() <= 0.02 * np.abs(logits).max()
    assert (gap == 0).mean() >= 0.9


def _check_verify(engine: Engine, prompt: list[int], tokens: list[int]) -> None:
    """Verify's rows are decode's, and a chunk's last row is, too, bit for bit; so is what follows a commit."""
    executor, n = engine.executor, len(prompt)
    executor.prefill(0, prompt, 0, 0)
    verified = executor.verify(np.array([tokens[:4], tokens[:4]]), n + np.arange(4), [n, 0])[0].copy()
    for i in range(4):
        decoded = executor.decode([tokens[i], 0], n + i, [n + i, 0], [1, 0])[0]
        np.testing.assert_array_equal(decoded, verified[i], err_msg=f"row {i}")
    chunk = executor.prefill(0, tokens[:4], n, n)
    np.testing.assert_array_equal(chunk, verified[3])
    executor.verify(np.array([[tokens[0], tokens[1], 1, 1]] * 2), n + np.arange(4), [n, 0])
    executor.commit([n, 0], [2, 0])
    again = executor.decode([tokens[2], 0], n + 2, [n + 2, 0], [1, 0])[0]
    np.testing.assert_array_equal(again, verified[2])
