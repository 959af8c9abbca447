"""The states of one layer's cache, and how its attention scores."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerCache:
    """States [B,...] of a layer, and what its attention does to q.k; shapes as in graph/cache_ops.py.

    ``slot_score`` [B,G,C] and ``ring`` [B,H,R,D] are there if the policy keeps them; ``rope`` if it works on queries
    before rope.
    """

    k_cache: Tensor
    v_cache: Tensor
    slot_position: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None
    slot_score: Tensor | None = None
    ring: Tensor | None = None
    rope: "Rotation | None" = None
    scale: float = 1.0
    window: int = 0
    softcap: float = 0.0
    sinks: Tensor | None = None


@dataclass(frozen=True)
class Rotation:
    """Rope of a layer as numbers: element d of a query at position p is turned by p * angle[d], and scaled.

    ``angle`` float32 [D]; ``cos_ahead`` and ``sin_ahead`` float32 [D] are the mean cosine and sine, scaled, over the
    positions that lie ahead (0 .. n-1 from a token on).
    """

    angle: Tensor
    cos_ahead: Tensor
    sin_ahead: Tensor
