"""Plain decoding on a GPU: what accept_1 draws from decode's logits is what sampling on the host would draw."""

from dataclasses import replace

import pytest
import torch

from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import PassError
from dspark_compiler.graph.program import EntryKind, Program
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.draw_tokens import DrawTokens
from dspark_compiler.passes.pipeline import default_pipeline
from tests.captured import captured
from tests.program_runner import ProgramRunner, knobs
from tests.tiny_models import tiny

CONFIG = CompileConfig(target="cuda", max_seq_len=32, max_batch=2, prefill_widths=(4,), verify_width=2)


def test_accept_draws_what_follows_from_the_logits_of_decode():
    program, _ = run_passes(default_pipeline(CONFIG), captured(tiny("llama"), CONFIG))
    entry = program.entries["accept_1"]
    assert (entry.kind, entry.batch, entry.width) == (EntryKind.ACCEPT, 2, 1)
    runner = ProgramRunner(program)
    (expected,) = (node.meta["val"] for node in entry.graph.graph.nodes if node.meta.get("ref") == "logits")
    logits = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    tokens = torch.zeros(2, 1, dtype=torch.int64)
    given = {"tokens": tokens, "logits": logits, "count": torch.zeros(2, dtype=torch.int32)}
    given |= {"position": torch.tensor([5, 6]), "length": torch.tensor([5, 6], dtype=torch.int32)}
    sampled = runner.run(
        "accept_1", **given, uniform=torch.tensor([[0.0], [1.0 - 2**-24]]), **knobs(2, temperature=1.0)
    )
    assert sampled["accepted"].tolist() == [1, 1]
    assert (sampled["position"].tolist(), sampled["length"].tolist()) == ([6, 7], [6, 7])
    assert [int(sampled["next"][row]) for row in range(2)] == [0, logits.shape[-1] - 1], (
        "the two ends of the distribution"
    )
    greedy = runner.run("accept_1", **given, uniform=torch.zeros(2, 1), **knobs(2, temperature=0.0))
    assert greedy["next"].tolist() == logits[:, 0].argmax(-1).tolist()


def test_the_cpu_draws_on_the_host():
    names = [type(one).__name__ for one in default_pipeline(replace(CONFIG, target="cpu"))]
    assert "DrawTokens" not in names


def test_nothing_to_draw_from():
    with pytest.raises(PassError, match="no entry point decode"):
        DrawTokens().apply(Program(entries={}, params={}))
