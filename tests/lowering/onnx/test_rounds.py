"""Emitted models of drafters draft as the reference does, and accept what it accepts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dspark_compiler.config import NGRAM
from dspark_compiler.graph.program import Role
from tests.lowering.onnx.test_families import close
from tests.onnx_runner import OnnxRunner, copied
from tests.passes.test_attach_decode_heads import CONFIG, DRAFTERS, PROMPTS, G, attached, make_heads
from tests.program_runner import ProgramRunner
from tests.tiny_models import tiny


@pytest.mark.parametrize("name", DRAFTERS)
def test_drafts(name: str, tmp_path: Path) -> None:
    model = tiny("llama")
    program = attached(model, make_heads(model, name, window=8))
    runners = OnnxRunner(program, tmp_path), ProgramRunner(copied(program))
    uniform = torch.rand(2, G, generator=torch.Generator().manual_seed(1))

    def check(temperature: float) -> None:
        found, wanted = (runner.draft([7, 8], uniform, temperature) for runner in runners)
        assert torch.equal(found["input_ids"], wanted["input_ids"])
        assert torch.equal(found["positions"], wanted["positions"])
        for output in wanted.keys() - {"input_ids", "positions"}:
            close(found[output], wanted[output])

    check(1.0)  # nothing is remembered yet
    for runner in runners:
        for row, prompt in enumerate(PROMPTS):
            runner.prefill(row, list(prompt))
    check(0.7)
    for runner in runners:
        runner.verify([[7, 1, 2, 3], [8, 4, 5, 6]])
        runner.commit([3, 1])
    check(0.0)
    for runner in runners:
        runner.decode([9, None])
    check(1.0)


@pytest.fixture(scope="module", params=["drawn", "certain"])
def accepting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[OnnxRunner, ProgramRunner]:
    model = tiny("llama")
    certain = request.param == "certain"
    program = (
        attached(model, None, replace(CONFIG, heads=NGRAM))
        if certain
        else attached(model, make_heads(model, "vanilla"))
    )
    return OnnxRunner(program, tmp_path_factory.mktemp("accept")), ProgramRunner(copied(program))


@pytest.mark.parametrize(
    "knobs",
    [(0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.7, 5, 1.0, 0.0), (1.3, 0, 0.6, 0.0), (0.9, 40, 0.8, 0.05)],
)
@pytest.mark.parametrize("name", ["accept_2", "accept_4"])
def test_accepted(
    name: str, knobs: tuple[float, int, float, float], accepting: tuple[OnnxRunner, ProgramRunner]
) -> None:
    generator = torch.Generator().manual_seed(11)
    entry = accepting[1].program.entries[name]
    vocab, width = 128, entry.width
    seen = set()
    for _ in range(20):
        logits = 3 * torch.randn(2, width, vocab, generator=generator)
        draft = (logits[:, :1] + 1.5 * torch.randn(2, G, vocab, generator=generator)).softmax(-1)
        tokens = torch.cat(
            [torch.tensor([[5], [6]]), torch.multinomial(draft.view(-1, vocab), 1, generator=generator).view(2, G)], 1
        )
        inputs = {
            "tokens": tokens[:, :width].contiguous(),
            "logits": logits,
            "count": torch.tensor([width - 1, -1 if len(seen) % 2 else width - 2], dtype=torch.int32),
            "uniform": torch.rand(2, width, generator=generator),
            "position": torch.tensor([9, 4]),
            "length": torch.tensor([9, 4], dtype=torch.int32),
            "temperature": torch.tensor([knobs[0], 1.0]),
            "top_k": torch.tensor([knobs[1], 0], dtype=torch.int32),
            "top_p": torch.tensor([knobs[2], 1.0]),
            "min_p": torch.tensor([knobs[3], 0.0]),
            "draft_probs": draft,
        }
        if "draft_probs" not in {node.meta["ref"] for node in entry.placeholders(Role.INPUT)}:
            del inputs["draft_probs"]
            inputs["tokens"][:, 1:] = logits[:, :-1].argmax(-1)
        found, wanted = (runner.run(name, **inputs) for runner in accepting)
        for output, value in wanted.items():
            assert torch.equal(found[output], value), output
        seen.add(tuple(wanted["accepted"].tolist()))
    assert len(seen) > 1
