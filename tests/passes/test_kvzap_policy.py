"""The policy kvzap in a program: tokens are scored as they come, whichever way, and the lowest go."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import InputError
from dspark_compiler.frontend.seam import seam
from dspark_compiler.graph.program import Program
from dspark_compiler.models import family_of
from dspark_compiler.models.surrogate import Affine, Surrogate, write_surrogate
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.kv_policies import choose_policy
from dspark_compiler.passes.kv_pruning.budget import KVBudget
from dspark_compiler.passes.pipeline import default_pipeline
from dspark_compiler.training.reconstruction import reconstruct
from dspark_compiler.training.sites import find_sites
from tests.passes.capture import VOCAB, capture, tiny_model
from tests.program_runner import ProgramRunner

LONGEST, BATCH, WIDTH, BUDGET = 90, 2, 4, 40
K, GROUPS, LAYERS = 32, 2, 2


def surrogate(units: int = 8, hidden: int = K, layers: int = LAYERS) -> Surrogate:
    generator = torch.Generator().manual_seed(units)
    sizes = [(units, hidden), (GROUPS, units)] if units else [(GROUPS, hidden)]
    made = tuple(
        tuple(
            Affine(torch.randn(*size, generator=generator).half().float(), torch.randn(size[0], generator=generator))
            for size in sizes
        )
        for _ in range(layers)
    )
    return Surrogate("tiny", hidden, GROUPS, made, {}, (0.0,) * layers, (0.0,) * layers)


def weights(folder: Path, made: Surrogate) -> Path:
    write_surrogate(folder / "w.safetensors", made)
    return folder / "w.safetensors"


def program(file: Path) -> Program:
    captured = capture(tiny_model("llama"), prefill=(4,), batch=BATCH, verify=WIDTH)
    config = CompileConfig(
        max_seq_len=LONGEST,
        max_batch=BATCH,
        verify_width=WIDTH,
        kv_budget=BUDGET,
        kv_policy="kvzap",
        kv_weights=file,
    )
    return run_passes(default_pipeline(config), captured)[0]


@pytest.fixture(scope="module", params=[8, 0], ids=["mlp", "linear"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Surrogate, Program]:
    made = surrogate(request.param)
    return made, program(weights(tmp_path_factory.mktemp("kvzap"), made))


def tokens(count: int) -> list[int]:
    return torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))[:count].tolist()


def hidden_states(ids: list[int]) -> list[Tensor]:
    """What each layer's projections read, before anything is evicted."""
    model = tiny_model("llama")
    found: list[Tensor] = []
    with seam(model, family_of("llama")):
        empty = torch.zeros(0, dtype=torch.int64)
        reconstruct(
            model, find_sites(model), torch.tensor(ids), empty, lambda _layer, hidden, _target: found.append(hidden)
        )
    return found


def positions(runner: ProgramRunner, layer: int) -> list[list[int]]:
    """Positions in use in sequence 1, per head."""
    state = runner.states[f"slot_position.{layer}"][1]
    used: list[list[int]] = state[:, : BUDGET - int(runner.account.free[1])].tolist()
    return used


@pytest.mark.parametrize("way", ["prefill", "decode", "verify"])
def test_the_lowest_predictions_go(compiled: tuple[Surrogate, Program], way: str) -> None:
    """The first eviction, when all tokens' hidden states are still those of the unpruned model."""
    made, pruned = compiled
    runner = ProgramRunner(pruned)
    ids = tokens(BUDGET + 1)
    first = BUDGET if way == "prefill" else 6
    runner.prefill(1, ids[:first])
    while first < BUDGET:
        if way == "decode":
            runner.decode([None, ids[first]])
            first += 1
        else:
            count = min(3, BUDGET - first)
            runner.verify([[0] * WIDTH, (ids[first:BUDGET] + [0] * WIDTH)[:WIDTH]])
            runner.commit([0, count])
            first += count
    scores = {layer: made.score(layer, hidden).T for layer, hidden in enumerate(hidden_states(ids[:BUDGET]))}
    for layer, score in scores.items():
        stored = runner.states[f"slot_score.{layer}"][1]
        if not int(runner.account.free[1]):  # nothing was evicted yet
            torch.testing.assert_close(stored, score, rtol=1e-4, atol=1e-4)
    runner.decode([None, ids[BUDGET]])
    budget = KVBudget.divide(BUDGET, WIDTH)
    for layer, score in scores.items():
        for head, found in enumerate(positions(runner, layer)):
            gone = sorted(set(range(BUDGET + 1)) - set(found))
            may_go = list(range(budget.first, BUDGET - budget.last))
            lowest = sorted(may_go, key=lambda p, head=head, score=score: score[head, p])
            assert gone
            assert gone == sorted(lowest[: len(gone)])


def test_weights_are_needed_and_have_to_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--kv-policy kvzap: needs trained weights, --kv-weights FILE; dspark kvzap"):
        choose_policy("kvzap")
    with pytest.raises(InputError, match="no such file"):
        choose_policy("kvzap", tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"w\.safetensors: was trained for tiny .hidden size: 16., the model has 32"):
        program(weights(tmp_path, surrogate(hidden=16)))
    with pytest.raises(InputError, match=r"was trained for tiny .layers: 1., the model has 2"):
        program(weights(tmp_path, surrogate(layers=1)))


def test_it_may_follow_snapkv_and_fill_a_pyramid(tmp_path: Path) -> None:
    file = weights(tmp_path, surrogate())
    chosen = choose_policy("pyramid:snapkv+kvzap", file)
    assert (chosen.prompt.name, chosen.decode.name, chosen.pyramid) == ("snapkv", "kvzap", True)
    plain = choose_policy("kvzap", file)
    assert plain.prompt == plain.decode == chosen.decode
