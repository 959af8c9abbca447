"""Which drafts stay, decided of a whole block at once (Sun et al. 2024, arXiv 2403.10444, algorithm 2).

The target's distributions p and the drafter's q give each draft x_i a number, from r_0 = 1 on:

    r_i = min(r_{i-1} p(x_i) / q(x_i), 1)                          ``reaches``
    R_i = sum over all y of max(r_i p(y) - q(y), 0)                of what follows x_i
    h_i = R_i / (R_i + 1 - r_i), of the last draft r_i             ``ending``

The largest i stays for which a random number of its own is below h_i, 0 if none. Given x_1..x_i, at least i drafts stay
with probability r_i, which no rule can exceed. What follows is drawn from max(r_i p - q, 0), behind the last draft
from p. How many drafts are looked at may depend on drafts, as long as looking at x_{i+1} depends on none after x_i.

Shapes: k drafts looked at, V vocabulary.
"""

from torch import Tensor


def reaches(p: Tensor, q: Tensor | None, tokens: list[int]) -> list[float]:
    """r_0..r_k of drafts ``tokens`` [k]; p, q [at least k,V], q None: they were drafted with certainty."""
    found = [1.0]
    for place, token in enumerate(tokens):
        drafted = 1.0 if q is None else float(q[place, token])
        # Nothing is drafted that has no probability.
        ratio = float(p[place, token]) / drafted if drafted > 0 else 1.0
        found.append(min(found[-1] * ratio, 1.0))
    return found


def ending(p: Tensor, q: Tensor | None, tokens: list[int], place: int, found: list[float]) -> tuple[float, Tensor]:
    """h_i of i = ``place``, 0..k, and the weights [V], not normalized, of the token behind it; ``found`` by reaches."""
    reach = found[place]
    if place == len(tokens):
        return reach, p[place]
    rest = reach * p[place]
    if q is None:
        rest[tokens[place]] = 0.0  # it has all of q, and p is at most 1
    else:
        rest = (rest - q[place]).clamp(min=0)
    total = float(rest.double().sum())
    if reach < 1:
        return total / (total + 1 - reach), rest
    # Rounding alone can end here where p equals q.
    return 1.0, rest if total > 0 else p[place]
