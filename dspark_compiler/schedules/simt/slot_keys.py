"""Products of queries with the keys of slots: a team takes one slot, its lanes a part of the key each."""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.stored import cached
from dspark_compiler.schedules.simt.threads import TEAM, registers, team_sum
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr


def key_args(shape: CacheShape, dtype: str) -> list[Arg]:
    """The arguments k_cache, of ``dtype`` or quantized, and, if there is one, k_scale."""
    return [Arg("k_cache", (*shape.per_slot, shape.head_dim), shape.stored(dtype)), *shape.scale("k_scale")]


class SlotKey:
    """The key of a slot in the registers of a team; lane l has the elements l, l + 8, … of it."""

    def __init__(self, shape: CacheShape, lane: Expr) -> None:
        self._shape, self._lane = shape, lane
        self._count = -(-shape.head_dim // TEAM)
        self._key = registers(self._count)

    def load(self, keys: Buffer, scales: Buffer | None, at: tuple[Expr, Expr, Expr]) -> None:
        """Takes keys[at], of sequence, head and slot, times its scale."""
        for i in range(self._count):
            value = cached(keys[(*at, self._element(i))], self._shape.storage, str(keys.dtype))
            if scales is not None:
                value = value * scales[at]
            T.buffer_store(self._key, T.Select(self._inside(i), value, T.float32(0.0)), [i])

    def dot(self, query: Buffer, at: tuple[Expr, ...]) -> Expr:
        """The product with query[at], the same bits in all lanes; the team has to get here."""
        total = registers(1)
        T.buffer_store(total, T.float32(0.0), [0])
        for i in range(self._count):
            T.buffer_store(total, T.fma(query[(*at, self._element(i))], self._key[i], total[0]), [0])
        return team_sum(total[0])

    def _element(self, i: int) -> Expr:
        return T.min(i * TEAM + self._lane, self._shape.head_dim - 1)

    def _inside(self, i: int) -> Expr:
        return i * TEAM + self._lane < self._shape.head_dim
