"""A pruned program keeps its budget, forgets nothing early, and forgets the same whichever way tokens come."""

import dataclasses
from functools import cache

import pytest
import torch

from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import InputError
from dspark_compiler.graph.printer import print_entry
from dspark_compiler.graph.program import EntryKind, Program
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.kv_policies import POLICIES, choose_policy
from dspark_compiler.passes.kv_pruning.budget import KVBudget
from dspark_compiler.passes.pipeline import default_pipeline
from tests.passes.capture import VOCAB, capture, tiny_model
from tests.program_runner import ProgramRunner

LONGEST, BATCH, WIDTH = 90, 2, 4
NAMES = ("window", "knorm", "keydiff", "expected-attention", "tova", "h2o", "snapkv", "snapkv+h2o", "pyramid:knorm")


@cache
def _program(policy: str | None, budget: int = 40, family: str = "llama") -> Program:
    captured = capture(tiny_model(family), prefill=(4,), batch=BATCH, verify=WIDTH)
    config = CompileConfig(
        max_seq_len=LONGEST, max_batch=BATCH, verify_width=WIDTH, kv_budget=policy and budget, kv_policy=policy
    )
    return run_passes(default_pipeline(config), captured)[0]


def _tokens(count: int, seed: int = 0) -> list[int]:
    # All different: before rope the same token has the same key, and scores that tie are decided by rounding.
    return torch.randperm(VOCAB, generator=torch.Generator().manual_seed(seed))[:count].tolist()


def _decoded(program: Program, tokens: list[int], row: int = 1, prompt: int = 6) -> torch.Tensor:
    """Logits after each token from the last of the prompt on."""
    runner = ProgramRunner(program)
    logits = [runner.prefill(row, tokens[:prompt])]
    for token in tokens[prompt:]:
        logits.append(runner.decode([token if r == row else None for r in range(BATCH)])[row])
    return torch.stack(logits)


@pytest.mark.parametrize("policy", NAMES)
def test_nothing_is_forgotten_within_the_budget(policy: str) -> None:
    budget = 90 if policy.startswith("pyramid") else 40
    tokens = _tokens(min(layer.shape[2] for ref, layer in _program(policy, budget).states.items() if "k_cache" in ref))
    assert torch.equal(_decoded(_program(policy, budget), tokens), _decoded(_program(None), tokens))


# Beside sliding layers one policy of each kind: of positions, keys, queries to come and of those there were.
_SLIDING = ("window", "knorm", "expected-attention", "snapkv+h2o")


@pytest.mark.parametrize(
    ("policy", "family"), [*((name, "llama") for name in NAMES), *((name, "gemma2") for name in _SLIDING)]
)
def test_slots_hold_the_budget_and_both_edges(policy: str, family: str) -> None:
    program = _program(policy, family=family)
    runner = ProgramRunner(program)
    tokens = _tokens(LONGEST)
    runner.prefill(1, tokens[:70])
    budget = KVBudget.divide(40, WIDTH)
    for length in range(70, LONGEST):
        runner.decode([None, tokens[length]])
        for ref, positions in runner.states.items():
            if not ref.startswith("slot_position."):
                continue
            used = positions.shape[2] - int(runner.account.free[1])
            for head in positions[1, :, :used].tolist():
                assert head == sorted(set(head)), "slots are in the order of their tokens"
                newest = list(range(length + 1 - budget.last, length + 1))
                assert head[-budget.last :] == newest
                if positions.shape[2] == 40:
                    assert head[: budget.first] == list(range(budget.first))
    assert sum(spec.shape[2] for ref, spec in program.states.items() if ref.startswith("k_cache.")) <= 40 * 4


@pytest.mark.parametrize("policy", NAMES)
def test_verify_and_commit_forget_what_decoding_forgets(policy: str) -> None:
    program, tokens = _program(policy), _tokens(LONGEST, seed=3)
    expected = _decoded(program, tokens, row=0, prompt=5)
    runner = ProgramRunner(program)
    rows = [runner.prefill(0, tokens[:5])]
    length, accept = 5, 1
    while length < LONGEST:
        chunk = tokens[length : length + WIDTH]
        chunk += [0] * (WIDTH - len(chunk))
        logits = runner.verify([chunk, [0] * WIDTH])[0]
        accept = min(accept % WIDTH + 1, LONGEST - length, int(runner.account.free[0]))
        runner.commit([accept, 0])
        rows += list(logits[:accept])
        length += accept
    torch.testing.assert_close(torch.stack(rows), expected, rtol=1e-4, atol=1e-5)


def test_window_is_attention_to_the_first_and_the_newest() -> None:
    """Against the model itself, told by a mask what it may see."""
    tokens = _tokens(LONGEST)
    budget = KVBudget.divide(40, WIDTH)
    kept: list[int] = []
    mask = torch.full((LONGEST, LONGEST), float("-inf"))
    for position in range(LONGEST):
        if position >= 4 and len(kept) == budget.slots:
            kept = kept[: budget.first] + kept[budget.first + budget.block :]
        kept.append(position)
        mask[position, kept] = 0
    with torch.no_grad():
        expected = tiny_model("llama")(torch.tensor([tokens]), attention_mask=mask[None, None], use_cache=False).logits[
            0
        ]
    torch.testing.assert_close(_decoded(_program("window"), tokens, prompt=4), expected[3:], rtol=1e-4, atol=1e-4)


def test_sliding_layers_keep_their_window_and_nothing_changes() -> None:
    program = _program("window", 60, "gemma2")
    slots = {spec.shape[2] for ref, spec in program.states.items() if ref.startswith("k_cache.")}
    assert len(slots) == 2
    tokens = _tokens(60)
    found, expected = _decoded(program, tokens), _decoded(_program(None, family="gemma2"), tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_budgets_fall_with_depth() -> None:
    program = _program("pyramid:knorm")
    sizes = [spec.shape[2] for ref, spec in program.states.items() if ref.startswith("k_cache.")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
    assert program.pruning is not None
    assert program.pruning.room == sizes[-1]


def test_golden(golden) -> None:
    golden("prune_kv_cache.evict", print_entry(_program("h2o").entries["evict"]))
    golden("prune_kv_cache.commit", print_entry(_program("h2o").entries["commit"]))


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(InputError, match=r"--kv-policy best: 'best' is not one of window, .*snapkv\+NAME"):
        choose_policy("best")
    with pytest.raises(InputError, match="only snapkv is followed"):
        choose_policy("h2o+window")
    with pytest.raises(InputError, match=r"--kv-budget 10: .* give at least \d+"):
        KVBudget.divide(10, WIDTH)
    with pytest.raises(InputError, match="expected-attention: needs queries that rope turns"):
        _program("expected-attention", family="gpt2")


def test_the_smallest_budget_that_is_named_works() -> None:
    with pytest.raises(InputError) as caught:
        KVBudget.divide(9, 8)
    smallest = int(str(caught.value).split()[-1])
    assert KVBudget.divide(smallest, 8).slots == smallest
    with pytest.raises(InputError):
        KVBudget.divide(smallest - 1, 8)


def test_every_policy_is_in_the_list() -> None:
    assert set(POLICIES) - {"kvzap"} <= set(NAMES)


def test_evict_is_an_entry_point_of_one_sequence() -> None:
    program = _program("snapkv+h2o")
    kinds = {name: entry.kind for name, entry in program.entries.items()}
    assert kinds["evict"] is kinds["evict_prompt"] is EntryKind.EVICT
    assert dataclasses.asdict(program.pruning)["horizon"] == 4
