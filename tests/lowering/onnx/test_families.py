"""Every family's emitted models compute what its entry points do, call by call."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from dspark_compiler.config import CompileConfig, DType
from dspark_compiler.graph.program import Program
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from tests.captured import captured
from tests.onnx_runner import OnnxRunner, copied
from tests.program_runner import ProgramRunner
from tests.tiny_models import TINY, _model, tiny
from tests.traces import one_process


def rewritten(model: PreTrainedModel, **options: object) -> Program:
    config = CompileConfig(**{"max_seq_len": 48, "prefill_widths": (8,), "verify_width": 4} | options)
    program, _ = run_passes(default_pipeline(config), captured(model, config), dump_dir=None)
    return program


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4)


# Two sequences, so that traces are those of numerics/test_families.py; what one alone changes is no family's own.
_CASES = [*((name, 2) for name in TINY), *((name, 1) for name in ("llama", "gemma2", "gpt_oss"))]


@pytest.mark.parametrize(("name", "batch"), [pytest.param(*case, marks=one_process(case[0])) for case in _CASES])
def test_calls(name: str, batch: int, tmp_path: Path) -> None:
    check_calls(rewritten(tiny(name), max_batch=batch), tmp_path)


def test_heads_of_odd_sizes_take_plain_operators(tmp_path: Path) -> None:
    runner = check_calls(rewritten(_model("LlamaConfig", head_dim=12)), tmp_path)
    assert {"k_scratch.0", "v_scratch.1"} <= runner.states.keys()
    assert runner.states["k_cache.0"].shape == (1, 2, 48, 12)


def check_calls(
    program: Program, folder: Path, dtype: DType = "float32", close: Callable[..., None] = close
) -> OnnxRunner:
    """A prompt, steps, a verify that is accepted in part, and on to the last slot; all of the last sequence."""
    runners = OnnxRunner(program, folder, dtype), ProgramRunner(copied(program))
    row = runners[0].batch - 1
    others = [None] * row
    prompt = torch.randint(3, 128, (41,), generator=torch.Generator().manual_seed(1)).tolist()
    close(*(runner.prefill(row, prompt[:19]) for runner in runners))
    for token in (5, 9):
        close(*(runner.decode([*others, token])[row] for runner in runners))
    close(*(runner.verify([[7, 8, 11, 12]] * (row + 1)) for runner in runners))
    for runner in runners:
        runner.commit([0] * row + [3])
    close(*(runner.decode([*others, 40])[row] for runner in runners))
    close(*(runner.prefill(row, prompt[19:]) for runner in runners))  # there are no slots for the padding
    close(*(runner.decode([*others, 3])[row] for runner in runners))
    assert runners[1].length[row] == 48
    return runners[0]
