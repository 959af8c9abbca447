"""The exact distribution of what a round puts out, by enumeration of everything that can be drafted.

Models are Markov chains: p, q [V,V] are the target's and the drafter's distributions after a token. A rule says how
many drafts are looked at, given all tokens of the round, and so could anticipate.
"""

from collections import defaultdict
from collections.abc import Callable
from itertools import product

import numpy as np
import torch

from dspark_compiler.graph.block_verification import ending, reaches

Law = dict[tuple[int, ...], float]
Rule = Callable[[tuple[int, ...]], int]


def chain(seed: int, size: int, spread: float = 1.0) -> torch.Tensor:
    """A random chain; without the spread all tokens are equally likely."""
    logits = spread * np.random.default_rng(seed).standard_normal((size, size))
    return torch.softmax(torch.from_numpy(logits), dim=-1)


def verdicts(p: torch.Tensor, q: torch.Tensor | None, tokens: tuple[int, ...], count: int) -> Law:
    """What becomes of drafts, given the anchor and these: tokens that stay and the one after them."""
    law: Law = defaultdict(float)
    seen = list(tokens[: count + 1])
    after_each, drawn_from, drafts = p[seen], None if q is None else q[seen], seen[1:]
    found, left = reaches(after_each, drawn_from, drafts), 1.0
    for place in range(count, -1, -1):
        chance, weights = ending(after_each, drawn_from, drafts, place, found)
        for token, weight in enumerate((weights / weights.sum()).tolist() if chance > 0 else ()):
            law[*drafts[:place], token] += left * chance * weight
        left *= 1 - chance
    return law


def drafted(q: torch.Tensor, anchor: int, block_size: int) -> Law:
    """All blocks, with the anchor in front, and their probabilities."""
    law: Law = {}
    for block in product(range(len(q)), repeat=block_size):
        tokens = (anchor, *block)
        law[tokens] = float(np.prod([float(q[a, b]) for a, b in zip(tokens, block, strict=False)]))
    return law


def round_law(p: torch.Tensor, q: torch.Tensor, anchor: int, block_size: int, rule: Rule) -> Law:
    """What one round puts out."""
    law: Law = defaultdict(float)
    for tokens, weight in drafted(q, anchor, block_size).items():
        for output, chance in verdicts(p, q, tokens, rule(tokens)).items():
            law[output] += weight * chance
    return law


def after(law: Law, one_more: Callable[[int], Law], enough: int = 1 << 30) -> Law:
    """Another round upon each output of fewer tokens than are enough; it depends on the last token alone."""
    memo = {token: one_more(token) for token in {output[-1] for output in law if len(output) < enough}}
    result: Law = defaultdict(float)
    for output, weight in law.items():
        if len(output) >= enough:
            result[output] += weight
            continue
        for more, chance in memo[output[-1]].items():
            result[*output, *more] += weight * chance
    return result


def first_tokens(law: Law, p: torch.Tensor, count: int) -> np.ndarray:
    """The joint distribution [V]*count of the first tokens, outputs that are shorter continued by the target."""
    result = np.zeros((len(p),) * count)
    for output, weight in law.items():
        missing = count - len(output)
        if missing <= 0:
            result[output[:count]] += weight
        else:
            result[output] += weight * target_law(p, output[-1], missing)
    return result


def target_law(p: torch.Tensor, anchor: int, count: int) -> np.ndarray:
    """The target's own joint distribution [V]*count of the tokens after an anchor."""
    table = p.numpy()
    result = table[anchor]
    for _ in range(count - 1):
        result = result[..., None] * table
    return result
