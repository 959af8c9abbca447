"""Sizes of an attention call, what happens to its scores, and how the cache keeps a slot."""

from dataclasses import dataclass

from dspark_compiler.schedules.cache_storage import FLOAT32, Storage
from dspark_compiler.schedules.isa import VectorIsa


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one attention call; lengths in tokens or slots."""

    rows: int  # b, sequences of the call
    width: int  # S, new tokens a sequence
    heads: int  # H
    kv_heads: int  # G
    head_dim: int  # D
    value_dim: int  # Dv
    batch: int  # B, sequences the cache holds
    slots: int  # C
    scratch: int  # N, scratch rows a sequence; 0 when new tokens go to live slots

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Scoring:
    """What happens to q.k before the softmax."""

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False


@dataclass(frozen=True)
class CacheForm:
    """What a cache has besides float32 keys and values: which of the operators' optional arguments are given."""

    storage: Storage = FLOAT32
    free: bool = False  # slots in use may be fewer than tokens
    slot_position: bool = False  # a slot's position is looked up; otherwise it is the slot's number


def key_cache_shape(batch: int, kv_heads: int, slots: int, head_dim: int, isa: VectorIsa) -> tuple[int, ...]:
    """Physical shape of a layer's keys; slots rounded up to whole panels."""
    return (batch, kv_heads, -(-slots // isa.lanes), head_dim, isa.lanes)
