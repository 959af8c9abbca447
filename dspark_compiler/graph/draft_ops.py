"""Operators of speculative rounds: what a drafter remembers of confirmed tokens, and attention over it.

Shapes: b rows of a call, S tokens a row, H query heads, G key/value heads, D head size, B sequences the artifact holds,
W places of a ring, N tokens a verify takes.

A ring [B,G,W,D] keeps one row for each of a sequence's last tokens: that of the token at position p lies at place
p % W. ``spare`` of its places are for tokens that are not confirmed yet: a verify writes straight into them, and the
next round overwrites what was not accepted. So a drafter may look at the last min(length, W - spare) confirmed tokens.
``length`` int32 [b] is the confirmed tokens of a row's sequence. ``sequence`` and ``count`` int32 [b] are the row of
the ring and how many of the S tokens are real; None where row r is sequence r and all are.
"""

import torch
from torch import Tensor

from dspark_compiler.graph.reference import masked_attention

Optional = Tensor | None

EMBEDDING = -1  # the "layer" whose output is what the first decoder layer is given


@torch.library.custom_op("dspark::write_ring", mutates_args=("ring",))
def write_ring(rows: Tensor, ring: Tensor, length: Tensor, sequence: Optional = None, count: Optional = None) -> None:
    """Writes rows [b,G,S,D] of tokens length, length + 1, … to their places; where two share one, the later stays."""
    places = ring.shape[2]
    for r in range(rows.shape[0]):
        n = rows.shape[2] if count is None else int(count[r])
        for i in range(max(0, n - places), n):
            ring[r if sequence is None else int(sequence[r]), :, (int(length[r]) + i) % places] = rows[r, :, i]


@torch.library.custom_op("dspark::read_ring", mutates_args=())
def read_ring(ring: Tensor, length: Tensor, sequence: Optional = None) -> Tensor:
    """The row of each sequence's last confirmed token, [b,G,1,D]; zeros before the first token."""
    b = length.shape[0]
    out = ring.new_zeros(b, ring.shape[1], 1, ring.shape[3])
    for r in range(b):
        if (start := int(length[r])) > 0:
            out[r, :, 0] = ring[r if sequence is None else int(sequence[r]), :, (start - 1) % ring.shape[2]]
    return out


@read_ring.register_fake
def _(ring, length, *_):  # type: ignore[no-untyped-def]
    return ring.new_empty(length.shape[0], ring.shape[1], 1, ring.shape[3])


@torch.library.custom_op("dspark::block_attention", mutates_args=())
def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_ring: Tensor,
    v_ring: Tensor,
    length: Tensor,
    spare: int,
    scale: float,
) -> Tensor:
    """Attention of a draft block to the ring's confirmed tokens and to all of the block; not causal (DSpark, eq. 3).

    q [B,H,S,D] and the block's k [B,G,T,D], v [B,G,T,Dv], rope applied; k_ring [B,G,W,D], v_ring [B,G,W,Dv]
    -> [B,S,H,Dv].
    """
    places = k_ring.shape[2]
    out = []
    for r in range(q.shape[0]):
        end = int(length[r])
        begin = max(0, end - (places - spare))
        live = torch.arange(begin, end) % places
        keys = torch.cat([k_ring[r, :, live], k[r]], dim=1)
        values = torch.cat([v_ring[r, :, live], v[r]], dim=1)
        mask = torch.ones(1, k.shape[1], q.shape[2], keys.shape[1], dtype=torch.bool)
        out.append(masked_attention(q[r : r + 1], keys[None], values[None], mask, scale, 0.0, None))
    return torch.cat(out)


@block_attention.register_fake
def _(q, k, v, *_):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


@torch.library.custom_op("dspark::layer_output", mutates_args=())
def layer_output(x: Tensor, layer: int) -> Tensor:
    """Marks x [b,S,K] as what decoder layer ``layer`` hands on (or EMBEDDING)."""
    return x.clone()


@layer_output.register_fake
def _(x, layer):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)
