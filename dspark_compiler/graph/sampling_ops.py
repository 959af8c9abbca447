"""Operators that draw draft tokens and accept them, which keeps the target's distribution (block_verification.py).

Shapes: B sequences, R rows a sequence, V vocabulary, N tokens a verify takes (the anchor and N-1 drafts).

A distribution is drawn from and compared as the same float32 numbers, so what is accepted has exactly the target's
distribution. Greedy decoding is the case in which each distribution has all its weight on one token. ``uniform`` are
random numbers in [0, 1) that the host draws, each used for one decision.
"""

import torch
from torch import Tensor

from dspark_compiler.graph.block_verification import ending, reaches


@torch.library.custom_op("dspark::token_probs", mutates_args=())
def token_probs(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The distributions [B,R,V] tokens are drawn from, given logits [B,R,V]; the order is transformers'.

    temperature, top_p, min_p float32 [B]; top_k int32 [B]. Temperature 0 puts everything on the first of the most
    likely tokens; top_k 0, top_p 1 and min_p 0 are off. Equals of the last of the top_k tokens stay; the nucleus is the
    fewest most likely tokens that hold top_p, the first ones among equals.
    """
    out = torch.empty_like(logits, dtype=torch.float32)
    for row in range(logits.shape[0]):
        knobs = (float(temperature[row]), int(top_k[row]), float(top_p[row]), float(min_p[row]))
        for r in range(logits.shape[1]):
            out[row, r] = _distribution(logits[row, r].float(), *knobs)
    return out


@token_probs.register_fake
def _(logits, temperature, top_k, top_p, min_p):  # type: ignore[no-untyped-def]
    return torch.empty_like(logits, dtype=torch.float32)


def _distribution(scores: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    if temperature == 0:
        # Not argmax, which may return any one of several equals.
        first = (scores == scores.max()).nonzero()[0]
        return torch.zeros_like(scores).index_fill_(0, first, 1.0)
    scores = scores / temperature
    weights = torch.exp(scores - scores.max())
    if 0 < top_k < scores.numel():
        weights[scores < scores.topk(top_k).values[-1]] = 0
    if top_p < 1:
        order = torch.argsort(weights, descending=True, stable=True)
        above = weights[order].double().cumsum(0) - weights[order].double()
        weights[order[above >= top_p * weights.double().sum()]] = 0
    if min_p > 0:
        weights[weights < min_p] = 0  # the most likely token has weight 1
    return (weights / weights.double().sum()).float()


@torch.library.custom_op("dspark::draw", mutates_args=())
def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """A token of each distribution: probs [B,V], uniform float32 [B] -> int64 [B]; never one of probability 0."""
    return torch.stack([_draw(p, float(u)) for p, u in zip(probs, uniform, strict=True)])


@draw.register_fake
def _(probs, uniform):  # type: ignore[no-untyped-def]
    return probs.new_empty(probs.shape[0], dtype=torch.int64)


def _draw(weights: Tensor, uniform: float) -> Tensor:
    """The first token up to which more than ``uniform`` of all weight lies."""
    ladder = weights.double().cumsum(0)
    possible = weights > 0
    above = ((ladder > uniform * ladder[-1]) & possible).nonzero()
    return above[0, 0] if len(above) else possible.nonzero()[-1, 0]


@torch.library.custom_op("dspark::accept", mutates_args=())
def accept(
    tokens: Tensor,
    probs: Tensor,
    count: Tensor,
    uniform: Tensor,
    position: Tensor,
    length: Tensor,
    draft_probs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which tokens of a verify stay, the token that follows them, and where that is.

    tokens int64 [B,N]: the anchor, then the drafts; probs [B,N,V]: the target's distribution after each of these;
    draft_probs [B,≥N-1,V]: what each draft was drawn from, None if it was certain; count int32 [B]: drafts to look at,
    at most N-1, below 0 where the sequence is left alone; uniform float32 [B,N]: one number a draft, the last for the
    token that follows; position int64 [B] of the anchor and length int32 [B], the confirmed tokens before it.

    Returns accepted int32 [B], the anchor and the drafts that stay, 0 of a sequence left alone; following int64 [B],
    the token after them, see block_verification; and its position int64 [B] and length int32 [B].
    """
    kept, following = [], []
    for row in range(tokens.shape[0]):
        drafts = tokens[row, 1 : 1 + max(int(count[row]), 0)].tolist()
        p, q = probs[row], None if draft_probs is None else draft_probs[row]
        found, n = reaches(p, q, drafts), len(drafts)
        chance, weights = ending(p, q, drafts, n, found)
        while n > 0 and not float(uniform[row, n - 1]) < chance:
            n -= 1
            chance, weights = ending(p, q, drafts, n, found)
        kept.append(n)
        following.append(_draw(weights, float(uniform[row, -1])))
    accepted = torch.where(count < 0, 0, torch.tensor(kept, dtype=torch.int32) + 1)
    return accepted, torch.stack(following), position + accepted, length + accepted


@accept.register_fake
def _(tokens, probs, count, uniform, position, length, draft_probs=None):  # type: ignore[no-untyped-def]
    batch = tokens.shape[0]
    return count.new_empty(batch), tokens.new_empty(batch), position.new_empty(batch), length.new_empty(batch)
