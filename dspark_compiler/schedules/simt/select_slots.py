"""Which slots stay: a threshold found digit by digit in the order of scores, then one walk in slot order.

A work group a head. The search counts how many scores lie below each of some candidates, reading them once for all.
"""

from collections.abc import Callable, Sequence

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.group_counts import before, group_counts, variable
from dspark_compiler.schedules.simt.rank_search import highest, rank_of
from dspark_compiler.schedules.simt.threads import launch, registers
from dspark_compiler.schedules.slot_rows import used_slots
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_THREADS = 256
_BITS, _STEP = 32, 4
_PROTECTED = 2**32 - 1


@made_once
def select_slots(name: str, shape: CacheShape, first: int, last: int) -> tvm.tirx.PrimFunc:
    """Where the content of each slot lies now that the lowest scores go, older first among equals; -1 behind the kept.

    Arguments: score float32 [1,G,C], slot_position int32 [B,G,C], sequence, length, free, need int32 [1], out int32
    [1,G,C]. Tokens before position ``first`` and the last ``last`` of the sequence go only when nothing else is left.
    """

    def body(score: Buffer, slot_position: Buffer, *rest: Buffer) -> None:
        sequence, length, free, need, out = rest
        with launch((shape.kv_heads,), _THREADS) as (head, thread):
            used = used_slots(length[0], shape.slots, free[0])
            drop = T.Bind(T.max(used + need[0] - shape.slots, 0))
            end, seq = T.Bind(length[0] - last), T.Bind(sequence[0])

            def rank(slot: Expr) -> Expr:
                """The order of a slot in use, the highest one of protected tokens."""
                position = T.Bind(slot_position[seq, head, slot])
                evictable = T.And(position >= first, position < end)
                return T.Bind(T.Select(evictable, rank_of(score[0, head, slot]), T.uint32(_PROTECTED)))

            row = _Row(rank, thread, used)
            bound = row.threshold(drop)
            row.keep(bound, drop, lambda place, slot: T.buffer_store(out, slot, [0, head, place]))
            with T.serial(0, -(-shape.slots // _THREADS)) as turn:
                place = T.Bind(turn * _THREADS + thread)
                with when(T.And(place >= used - drop, place < shape.slots)):
                    T.buffer_store(out, T.int32(-1), [0, head, place])

    control = [Arg(n, (1,), "int32") for n in ("sequence", "length", "free", "need")]
    row = (1, shape.kv_heads, shape.slots)
    args = [Arg("score", row), Arg("slot_position", shape.per_slot, "int32"), *control, Arg("out", row, "int32")]
    return kernel(name, args, body)


class _Row:
    """Emits the search in a head's ``used`` slots and the walk through them."""

    def __init__(self, rank: Callable[[Expr], Expr], thread: Expr, used: Expr) -> None:
        self._rank, self._thread, self._used = rank, thread, used

    def threshold(self, drop: Expr) -> Expr:
        """The ``drop``-th lowest rank."""
        return highest(_BITS, _STEP, lambda ranks: [count < drop for count in self._below(ranks)])

    def keep(self, bound: Expr, drop: Expr, put: Callable[[Expr, Expr], None]) -> None:
        """Calls put with place and slot of all above ``bound``, and at it behind the first that go."""
        (lower,) = self._below([bound])
        ties = T.Bind(drop - lower)
        share = T.Bind((self._used + (_THREADS - 1)) // _THREADS)
        start = T.Bind(T.min(self._thread * share, self._used))
        count = T.Bind(T.min(share, self._used - start))
        equals, above = variable(T.int32(0), "int32"), variable(T.int32(0), "int32")
        with T.serial(0, count) as step:
            rank = self._rank(start + step)
            T.buffer_store(equals, equals[0] + _one(rank == bound), [0])
            T.buffer_store(above, above[0] + _one(rank > bound), [0])
        seen, _ = before(equals[0], self._thread, _THREADS)
        late = T.max(seen + equals[0] - ties, 0) - T.max(seen - ties, 0)
        place, _ = before(above[0] + late, self._thread, _THREADS)
        number, next_place = variable(seen, "int32"), variable(place, "int32")
        with T.serial(0, count) as step:
            slot = T.Bind(start + step)
            rank = self._rank(slot)
            with when(T.Or(rank > bound, T.And(rank == bound, number[0] >= ties))):
                put(next_place[0], slot)
                T.buffer_store(next_place, next_place[0] + 1, [0])
            T.buffer_store(number, number[0] + _one(rank == bound), [0])

    def _below(self, ranks: Sequence[Expr]) -> list[Expr]:
        """How many slots lie below each of some ranks."""
        counts = registers(len(ranks), "int32")
        for i in range(len(ranks)):
            T.buffer_store(counts, T.int32(0), [i])
        with T.serial(0, (self._used + (_THREADS - 1)) // _THREADS) as turn:
            slot = T.Bind(turn * _THREADS + self._thread)
            with when(slot < self._used):
                rank = self._rank(slot)
                for i, bound in enumerate(ranks):
                    T.buffer_store(counts, counts[i] + _one(rank < bound), [i])
        return group_counts([counts[i] for i in range(len(ranks))], self._thread, _THREADS)


def _one(condition: Expr) -> Expr:
    return T.Select(condition, T.int32(1), T.int32(0))
