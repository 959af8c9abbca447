"""Every family's emitted models compute what its entry points do, call by call."""

from pathlib import Path

import pytest
import torch

from dspark_compiler.config import CompileConfig
from dspark_compiler.frontend.capture import capture
from dspark_compiler.graph.program import Program
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from tests.onnx_runner import OnnxRunner, copied
from tests.program_runner import ProgramRunner
from tests.tiny_models import TINY


def rewritten(name: str, **options: object) -> Program:
    config = CompileConfig(**{"max_seq_len": 48, "prefill_widths": (8,), "verify_width": 4} | options)
    program, _ = run_passes(default_pipeline(config), capture(TINY[name](), config), dump_dir=None)
    return program


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "batch"), [*((name, 1) for name in TINY), *((name, 2) for name in ("llama", "gemma2", "gpt_oss"))]
)
def test_calls(name: str, batch: int, tmp_path: Path) -> None:
    program = rewritten(name, max_batch=batch)
    runners = OnnxRunner(program, tmp_path), ProgramRunner(copied(program))
    for runner in runners:
        runner.tokens = torch.Generator().manual_seed(5)
    prompt = torch.randint(3, 128, (19,), generator=torch.Generator().manual_seed(1)).tolist()
    close(*(runner.prefill(batch - 1, prompt) for runner in runners))
    others = [None] * (batch - 1)
    for token in (5, 9):
        close(*(runner.decode([*others, token])[-1] for runner in runners))
    close(*(runner.verify([[7, 8, 11, 12]] * batch) for runner in runners))
    for runner in runners:
        runner.commit([0] * (batch - 1) + [2])
    close(*(runner.decode([*others, 40])[-1] for runner in runners))
    # To the last slot, with a chunk whose padding has none.
    close(*(runner.prefill(batch - 1, prompt[: 47 - runner.length[batch - 1]]) for runner in runners))
    close(*(runner.decode([*others, 3])[-1] for runner in runners))
