"""After all passes a tiny model gives the tokens of eager generation, whichever entry points they come from."""

from functools import cache

import pytest
import torch

from dspark_compiler.config import CompileConfig
from dspark_compiler.graph.program import Program
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from tests.passes.capture import FAMILIES, VOCAB, capture, tiny_model
from tests.program_runner import ProgramRunner
from tests.traces import one_process

BATCH, WIDTH, NEW = 2, 4, 12
EACH_FAMILY = pytest.mark.parametrize("family", [pytest.param(name, marks=one_process(name)) for name in FAMILIES])


@cache
def _compiled(family: str) -> Program:
    captured = capture(tiny_model(family), prefill=(4, 16), batch=BATCH, verify=WIDTH)
    config = CompileConfig(max_seq_len=64, max_batch=BATCH, verify_width=WIDTH)
    return run_passes(default_pipeline(config), captured)[0]


def _prompt(seed: int, length: int) -> list[int]:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@cache
def _eager(family: str, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Greedy continuation by transformers, with its own cache."""
    ids = torch.tensor([prompt])
    model = tiny_model(family)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    )
    return tuple(out[0, len(prompt) :].tolist())


def _logits(family: str, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return tiny_model(family)(torch.tensor([tokens]), use_cache=False).logits[0]


@EACH_FAMILY
@pytest.mark.parametrize("length", [1, 16, 23], ids=lambda n: f"prompt{n}")
def test_prefill_in_chunks_then_decode(family, length):
    prompt = _prompt(length, length)
    runner = ProgramRunner(_compiled(family))
    logits = runner.prefill(1, prompt)
    torch.testing.assert_close(logits, _logits(family, prompt)[-1], rtol=1e-4, atol=1e-4)
    tokens = [int(logits.argmax())]
    while len(tokens) < NEW:
        tokens.append(int(runner.decode([None, tokens[-1]])[1].argmax()))
    assert tuple(tokens) == _eager(family, tuple(prompt))


@EACH_FAMILY
def test_batch_of_unequal_lengths(family):
    prompts = [_prompt(1, 19), _prompt(2, 5)]
    runner = ProgramRunner(_compiled(family))
    tokens = [[int(runner.prefill(i, prompt).argmax())] for i, prompt in enumerate(prompts)]
    while len(tokens[0]) < NEW:
        for own, logits in zip(tokens, runner.decode([t[-1] for t in tokens]), strict=True):
            own.append(int(logits.argmax()))
    assert [tuple(t) for t in tokens] == [_eager(family, tuple(p)) for p in prompts]


@EACH_FAMILY
def test_verify_accepts_what_is_right_and_forgets_the_rest(family):
    prompts = [_prompt(3, 9), _prompt(4, 18)]
    expected = [_eager(family, tuple(p)) for p in prompts]
    runner = ProgramRunner(_compiled(family))
    for i, prompt in enumerate(prompts):
        runner.prefill(i, prompt)
    tokens = [[e[0]] for e in expected]  # given, not yet in the cache: each round's first token
    for right in ((3, 0), (1, 2), (0, 3), (2, 1)):
        # As a drafter that guesses the first few right and then wrong.
        drafts = []
        for own, good, n in zip(tokens, expected, right, strict=True):
            guess = list(good[len(own) : len(own) + WIDTH - 1])
            guess += [0] * (WIDTH - 1 - len(guess))
            drafts.append([own[-1], *guess[:n], *((g + 1) % VOCAB for g in guess[n:])])
        choices = runner.verify(drafts).argmax(-1).tolist()
        accepted = []
        for own, draft, chosen in zip(tokens, drafts, choices, strict=True):
            kept = next(i for i in range(WIDTH) if i == WIDTH - 1 or draft[i + 1] != chosen[i]) + 1
            own += chosen[:kept]
            accepted.append(kept)
        assert accepted == [n + 1 for n in right]
        runner.commit(accepted)
    assert [tuple(t[:NEW]) for t in tokens] == [e[: len(t)] for e, t in zip(expected, tokens, strict=True)]
    # Afterwards the cache is as if the tokens had been decoded one by one.
    logits = runner.decode([t[-1] for t in tokens])
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(logits[i], _logits(family, prompt + tokens[i])[-1], rtol=1e-4, atol=1e-4)


def test_half_precision_stays_close():
    model = tiny_model("gemma2", torch.bfloat16)
    config = CompileConfig(max_seq_len=64, verify_width=WIDTH)
    program, _ = run_passes(default_pipeline(config), capture(model, verify=WIDTH))
    prompt = _prompt(5, 20)
    logits = ProgramRunner(program).prefill(0, prompt)
    with torch.no_grad():
        eager = model(torch.tensor([prompt]), use_cache=False).logits[0, -1]
    assert logits.dtype == torch.float32
    exact = _logits("gemma2", prompt)[-1]
    # No further from the float32 model than eager bfloat16 is, give or take half.
    assert (logits - exact).abs().max() <= 1.5 * (eager.float() - exact).abs().max()
