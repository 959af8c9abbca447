"""How work groups that have parts of the same rows of attention put them together.

Where work groups start in their order, that of the last part awaits the numbers of the others, each of which says
itself whether it is there (awaited.py), and adds its own from its registers. Elsewhere the last to arrive, as a counter
tells, reads all of them. Parts are added up in their order either way.
"""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.attention_parts import AT_ONCE, Parts, PartSum, chunks_of, of_row, put_out
from dspark_compiler.schedules.simt.attention_place import Place
from dspark_compiler.schedules.simt.attention_totals import THREADS, Totals
from dspark_compiler.schedules.simt.awaited import NOTHING, await_numbers, starts_in_order
from dspark_compiler.schedules.simt.cache_rows import Problem, Tensors
from dspark_compiler.schedules.simt.device_memory import arrive, fence, load_shared, store_count
from dspark_compiler.schedules.simt.threads import barrier, registers, shared
from dspark_compiler.schedules.tir import Buffer, Expr, when

_MOST_AWAITED = 16  # parts: what they are told by has to be unset before each step, up to the last of the cache's


def is_awaited(problem: Problem) -> bool:
    """Whether parts may be awaited; "workspace" holds ``NOTHING`` before the launch then."""
    return problem.awaits and 1 < chunks_of(problem) <= _MOST_AWAITED


class Meeting:
    """Where the parts of a work group's rows come together. Made at the top of a kernel.

    "arrived" is zero before the launch and after it, or ``NOTHING`` where launches overlap.
    """

    def __init__(self, problem: Problem, tensors: Tensors) -> None:
        self._problem, self._tensors = problem, tensors
        self._parts = Parts(problem, tensors, at_once=True)
        self._before = shared(1, "int32")

    def put_together(self, place: Place, chunk: Expr, parts: tuple[Expr, Expr], totals: Totals, blocks: int) -> None:
        """Writes "out" of what those with the ``parts`` (from, up to before) have; this one has ``chunk``."""
        if not is_awaited(self._problem):
            self._parts.put(place, chunk, totals)
            self._count(place, parts, blocks)
            return
        with T.If(T.And(starts_in_order(), chunk == parts[1] - 1)):
            with T.Then():
                self._finish(place, parts, totals)
            with T.Else():
                self._parts.put(place, chunk, totals)
                with when(T.Not(starts_in_order())):
                    self._count(place, parts, blocks)

    def _count(self, place: Place, parts: tuple[Expr, Expr], blocks: int) -> None:
        """Has the last to arrive write "out"."""
        with when(self._is_last(place, blocks, parts[1] - parts[0] - 1)):
            self._parts.write_out(place, *parts)

    def _is_last(self, place: Place, blocks: int, others: Expr) -> Expr:
        """Whether all ``others`` that have parts of these rows have put them; what they put is seen then."""
        start, arrived = NOTHING if self._problem.awaits else 0, self._tensors["arrived"]
        number = (place.row * self._problem.shape.kv_heads + place.head) * blocks + place.first // place.count
        before = registers(1, "int32")
        barrier()
        with when(place.thread == 0):
            # What a fence orders is all that its thread has seen: behind a barrier the stores of the whole work group.
            fence()
            T.buffer_store(before, T.cast(arrive(arrived, number) - T.uint32(start), "int32"), [0])
            fence()
            T.buffer_store(self._before, before[0], [0])
            with when(before[0] == others):
                store_count(arrived, number, start)
        barrier()
        T.buffer_store(before, self._before[0], [0])
        return before[0] == others

    def _finish(self, place: Place, parts: tuple[Expr, Expr], totals: Totals) -> None:
        """Adds the work group's own part, the last, to the others, once they are there."""
        value_dim, last = self._problem.shape.value_dim, T.Bind(parts[1] - 1)
        together, turns = min(AT_ONCE, chunks_of(self._problem) - 1), -(-value_dim // THREADS)
        own = [(i, turn) for i in range(place.count) for turn in range(turns)]
        sums, found = {each: PartSum() for each in own}, registers((len(own), together, 3))
        with T.serial(0, (last - parts[0] + (together - 1)) // together) as several:
            begin, asks = T.Bind(parts[0] + several * together), []
            for number, (i, turn) in enumerate(own):
                d = T.Bind(T.min(turn * THREADS + place.thread, value_dim - 1))
                for u in range(together):
                    row = T.min(place.first + i, self._problem.rows - 1)
                    line = self._parts.line(place, row, T.min(begin + u, last - 1))
                    places = (line + d, line + value_dim, line + (value_dim + 1))
                    asks += [
                        _Told(found, (number, u, n), self._tensors["workspace"], T.Bind(at))
                        for n, at in enumerate(places)
                    ]
            await_numbers(asks)
            for u in range(together):
                with when(begin + u < last):
                    for number, each in enumerate(own):
                        sums[each].add(*(found[number, u, n] for n in range(3)))
        left = iter(own)

        def store(i: int, d: Expr, *part: Expr) -> None:
            total = sums[next(left)]
            total.add(*part)
            with of_row(place, i):
                put_out(place, self._tensors, T.int32(i), d, *total.result())

        totals.for_elements(place.thread, store)


@dataclass(frozen=True)
class _Told:
    """See Question: a number that another work group of the launch stores for this one."""

    target: Buffer
    at: tuple[int, int, int]
    workspace: Buffer
    index: Expr

    def emit(self) -> None:
        """Asks once."""
        T.buffer_store(self.target, load_shared(self.workspace, self.index), list(self.at))

    def found(self) -> list[Expr]:
        """What has come of it."""
        return [self.target[self.at]]
