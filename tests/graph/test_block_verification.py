"""Block verification by enumeration: the target's distribution, and more drafts than token by token."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from dspark_compiler.graph.block_verification import ending, reaches
from dspark_compiler.graph.sampling_ops import token_probs
from tests.runtime.law import Law, after, chain, drafted, first_tokens, round_law, target_law, verdicts

BLOCK = 3


def kept(p: torch.Tensor, q: torch.Tensor, anchor: int, count: int) -> float:
    """Drafts that stay, on average."""
    return sum(chance * (len(output) - 1) for output, chance in round_law(p, q, anchor, BLOCK, lambda _: count).items())


def token_by_token(p: torch.Tensor, q: torch.Tensor | None, tokens: tuple[int, ...], count: int) -> Law:
    """What verdicts are if each draft is judged by itself (Leviathan et al. 2023, algorithm 1)."""
    law: Law = defaultdict(float)
    stay = 1.0
    for place in range(count):
        before, token = tokens[place], tokens[place + 1]
        q_row = torch.eye(len(p), dtype=p.dtype)[token] if q is None else q[before]
        chance = min(1.0, float(p[before, token] / q_row[token]))
        rest = (p[before] - q_row).clamp(min=0)
        for other, weight in enumerate((rest / rest.sum()).tolist() if chance < 1 else ()):
            law[*tokens[1 : place + 1], other] += stay * (1 - chance) * weight
        stay *= chance
    for token, weight in enumerate(p[tokens[count]].tolist()):
        law[*tokens[1 : count + 1], token] += stay * weight
    return law


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_fewer_drafts_stay_than_token_by_token(seed: int, count: int) -> None:
    p, q = chain(seed, 5, 1.5), chain(seed + 20, 5)
    alone = sum(
        weight * chance * (len(output) - 1)
        for tokens, weight in drafted(q, 1, BLOCK).items()
        for output, chance in token_by_token(p, q, tokens, count).items()
    )
    assert kept(p, q, 1, count) >= alone - 1e-12
    if count == 1:
        assert kept(p, q, 1, count) == pytest.approx(alone)
    else:
        assert kept(p, q, 1, count) > 1.01 * alone


def test_as_many_stay_as_any_rule_can_keep() -> None:
    """At least i drafts stay with probability r_i, given these i, which Sun et al. show to be the most there is."""
    p, q = chain(1, 5, 1.5), chain(2, 5)
    spread: Law = defaultdict(float)
    for block, weight in drafted(q, 1, BLOCK).items():
        for output, chance in verdicts(p, q, block, BLOCK).items():
            for i in range(len(output)):
                spread[block[1 : i + 1]] += weight * chance
    chances = set()
    for block in [(4,), (4, 0), (4, 0, 2), (0, 0, 0)]:
        places = [1, *block[:-1]]
        drawn = float(torch.stack([q[a, b] for a, b in zip(places, block, strict=True)]).prod())
        chance = reaches(p[places], q[places], list(block))[-1]
        chances.add(chance)
        assert spread[block] == pytest.approx(drawn * chance)
    assert sum(chance < 1 for chance in chances) > 1


def test_certain_drafts_are_judged_as_token_by_token() -> None:
    p, tokens = chain(5, 6), (1, 4, 2, 0)
    for count in range(4):
        law, alone = verdicts(p, None, tokens, count), token_by_token(p, None, tokens, count)
        assert law == pytest.approx({output: chance for output, chance in alone.items() if chance > 0 or output in law})


def test_of_greedy_distributions_the_first_disagreement_ends_a_block() -> None:
    eye = torch.eye(5, dtype=torch.float64)
    said, tokens = [1, 2, 4, 0], [1, 2, 3]
    found = reaches(eye[said], eye[tokens], tokens)
    assert found == [1, 1, 1, 0]
    ends = [ending(eye[said], eye[tokens], tokens, place, found) for place in range(4)]
    assert [chance for chance, _ in ends] == [1, 1, 1, 0]
    assert int(ends[2][1].argmax()) == 4
    assert int(ends[2][1].count_nonzero()) == 1


@pytest.mark.parametrize("knobs", [(0.7, 3, 1.0, 0.0), (1.0, 0, 0.8, 0.0), (1.3, 0, 1.0, 0.2), (0.9, 4, 0.9, 0.05)])
def test_two_rounds_of_shaped_distributions_are_the_targets(knobs: tuple[float, int, float, float]) -> None:
    """Tokens that cannot be on either side; the second round ends the context, with room for one draft."""
    random = np.random.default_rng(3)
    logits = torch.from_numpy(random.standard_normal((2, 5, 5)).astype(np.float32))
    given = [torch.tensor([value] * 2) for value in knobs]
    shaped = token_probs(logits, given[0], given[1].int(), given[2], given[3]).double()
    p, q = shaped / shaped.sum(-1, keepdim=True)
    assert (p == 0).any()
    assert ((p == 0) != (q == 0)).any()
    law = after(
        round_law(p, q, 1, BLOCK, lambda tokens: 3 if tokens[1] % 2 else 1),
        lambda anchor: round_law(p, q, anchor, BLOCK, lambda _: 1),
    )
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(first_tokens(law, p, 4), target_law(p, 1, 4), rtol=0, atol=1e-9)


def test_a_vocabulary_of_16() -> None:
    p, q = chain(8, 16, 2.0), chain(9, 16, 1.0)
    law = round_law(p, q, 3, 2, lambda _: 2)
    law = after(law, lambda anchor: round_law(p, q, anchor, 2, lambda tokens: 1 + tokens[1] % 2), enough=3)
    np.testing.assert_allclose(first_tokens(law, p, 3), target_law(p, 3, 3), rtol=0, atol=1e-9)
