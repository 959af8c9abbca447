"""Emitted models of pruned caches evict what the reference evicts, and compute what it computes."""

from pathlib import Path

import pytest
import torch

from tests.lowering.onnx.test_families import close, rewritten
from tests.onnx_runner import OnnxRunner, copied
from tests.program_runner import ProgramRunner
from tests.tiny_models import tiny
from tests.traces import one_process

_CASES = [
    ("window", "llama", 2),
    ("knorm", "llama", 1),
    ("keydiff", "llama", 1),
    ("expected-attention", "qwen3", 1),
    ("tova", "llama", 1),
    ("h2o", "gpt_oss", 2),
    ("snapkv+h2o", "gemma2", 1),
    ("pyramid:tova", "llama", 1),
]


@pytest.mark.parametrize(
    ("policy", "name", "batch"), [pytest.param(*case, marks=one_process(case[1])) for case in _CASES]
)
def test_calls_far_beyond_the_budget(policy: str, name: str, batch: int, tmp_path: Path) -> None:
    program = rewritten(tiny(name), max_batch=batch, max_seq_len=96, kv_budget=24, kv_policy=policy)
    runners = OnnxRunner(program, tmp_path), ProgramRunner(copied(program))
    tokens = torch.randint(3, 128, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    row, others = batch - 1, [None] * (batch - 1)
    close(*(runner.prefill(row, tokens[:37]) for runner in runners))
    for token in tokens[37:46]:
        close(*(runner.decode([*others, token])[row] for runner in runners))
    for start in (46, 50, 54):
        close(*(runner.verify([tokens[start : start + 4]] * batch)[row] for runner in runners))
        for runner in runners:
            runner.commit([0] * row + [start % 3 + 1])
    close(*(runner.decode([*others, 40])[row] for runner in runners))
    for name, state in runners[1].states.items():
        if name.startswith("slot_position"):
            assert torch.equal(runners[0].states[name][row], state[row])
