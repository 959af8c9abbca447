"""Which slots stay: a threshold by binary search over the scores' bits, then one walk in slot order; a block a head.

The search counts, for each of 32 bits, how many scores lie below a candidate, and reads them from the L2 each time.
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.block_scan import BlockScan
from dspark_compiler.schedules.cuda.row_registers import flipped, variable
from dspark_compiler.schedules.cuda.threads import launch
from dspark_compiler.schedules.slot_rows import used_slots
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_THREADS = 1024
_NEVER, _LOWEST = 2**31 - 1, -(2**31)


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
            end = T.Bind(length[0] - last)

            def order(slot: Expr) -> Expr:
                """The score of a slot in use as an integer of the same order, the largest one for protected tokens."""
                position = slot_position[sequence[0], head, slot]
                evictable = T.And(position >= first, position < end)
                return T.Select(evictable, flipped(T.reinterpret("int32", score[0, head, slot])), T.int32(_NEVER))

            row = _Row(order, BlockScan(thread, _THREADS), thread, used)
            bound = row.threshold(drop)
            kept = row.keep(bound, T.Bind(drop - row.below(bound)), lambda i, s: T.buffer_store(out, s, [0, head, i]))
            with T.serial(0, T.max(shape.slots - kept - thread + (_THREADS - 1), 0) // _THREADS) as step:
                T.buffer_store(out, T.int32(-1), [0, head, kept + step * _THREADS + thread])

    control = [Arg(n, (1,), "int32") for n in ("sequence", "length", "free", "need")]
    row = (1, shape.kv_heads, shape.slots)
    args = [Arg("score", row), Arg("slot_position", shape.per_slot, "int32"), *control, Arg("out", row, "int32")]
    return kernel(name, args, body)


class _Row:
    """Emits the search in a head's ``used`` slots and the walk through them."""

    def __init__(self, order: Expr, scan: BlockScan, thread: Expr, used: Expr) -> None:
        self._order, self._scan, self._thread, self._used = order, scan, thread, used
        self._steps = T.Bind((used + (_THREADS - 1)) // _THREADS)

    def below(self, rank: Expr) -> Expr:
        """How many slots are of lower order than ``rank``."""
        number = variable(T.int32(0), "int32")
        with T.serial(0, self._steps) as step:
            slot = T.Bind(step * _THREADS + self._thread)
            with when(slot < self._used):
                lower = T.Select(self._order(slot) < rank, T.int32(1), T.int32(0))
                T.buffer_store(number, number[0] + lower, [0])
        return self._scan.total(number[0])

    def threshold(self, drop: Expr) -> Expr:
        """The ``drop``-th lowest order."""
        bound = variable(T.int32(_LOWEST), "int32")
        with T.serial(0, 32) as step:
            # Seen as unsigned numbers from the lowest one up, this sets one more bit.
            candidate = T.Bind(T.bitwise_xor(bound[0], T.int32(1) << (T.int32(31) - step)))
            number = self.below(candidate)
            with when(number < drop):
                T.buffer_store(bound, candidate, [0])
        return T.Bind(bound[0])

    def keep(self, bound: Expr, ties: Expr, put: Expr) -> Expr:
        """Calls put with rank and slot of all above ``bound``, or at it past the first ``ties``; returns how many."""
        kept, seen = variable(T.int32(0), "int32"), variable(T.int32(0), "int32")
        with T.serial(0, self._steps) as step:
            slot = T.Bind(step * _THREADS + self._thread)
            inside = T.Bind(slot < self._used)
            order = T.Bind(T.if_then_else(inside, self._order(slot), T.int32(_LOWEST)))
            before, equals = self._scan.before(T.And(inside, order == bound))
            late = T.And(order == bound, seen[0] + before >= ties)
            stays = T.Bind(T.And(inside, T.Or(order > bound, late)))
            rank, more = self._scan.before(stays)
            with when(stays):
                put(kept[0] + rank, slot)
            T.buffer_store(seen, seen[0] + equals, [0])
            T.buffer_store(kept, kept[0] + more, [0])
        return T.Bind(kept[0])
