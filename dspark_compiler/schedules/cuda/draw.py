"""Drawing a token from weights: a cluster a row, float64 sums of its warps' pieces, then of the lanes' of one piece."""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.clusters import cluster_barrier, send
from dspark_compiler.schedules.cuda.loops import unrolled
from dspark_compiler.schedules.cuda.row_cluster import RowCluster
from dspark_compiler.schedules.cuda.row_registers import variable
from dspark_compiler.schedules.cuda.threads import WARP, registers, shared
from dspark_compiler.schedules.cuda.warps import first_lane, from_lane, reduce_float, reduce_int32, running_sum
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, when


def draw(name: str, batch: int, vocab: int) -> tvm.tirx.PrimFunc:
    """A token of each distribution; arguments probs [B,V], uniform [B], out int64 [B]."""
    cluster = RowCluster(vocab)

    def body(probs: Buffer, uniform: Buffer, out: Buffer) -> None:
        with cluster.launch(batch) as (row, block, thread):
            drawing = Drawing(cluster, (block, thread), lambda i: probs[row, i])
            drawing.add_up()
            drawing.token(T.Bind(uniform[row]), lambda token: T.buffer_store(out, token, [row]))

    return kernel(name, [Arg("probs", (batch, vocab)), Arg("uniform", (batch,)), Arg("out", (batch,), "int64")], body)


class Drawing:
    """Emits a draw from weight(0), … weight(vocab - 1), none of them negative, in float64 sums of fixed order."""

    def __init__(self, cluster: RowCluster, at: tuple[Expr, Expr], weight: Callable[[Expr], Expr]) -> None:
        self._cluster, self._weight = cluster, weight
        block, thread = at
        self._lane, self._warp = T.Bind(thread % WARP), T.Bind(block * (cluster.threads // WARP) + thread // WARP)
        self._sums = shared(cluster.warps, "float64")  # of each warp's piece
        # What a lane looks at: of all pieces, and of the elements of one.
        self._pieces = -(-cluster.warps // WARP)
        self._share = cluster.each
        self.total = registers(1, "float64")

    def add_up(self) -> None:
        """Sums of the pieces, and of all: must come before ``token``, again if weights have changed."""
        part = variable(T.float64(0.0), "float64")
        held = self._load(self._warp, lambda number: number * WARP + self._lane)
        with unrolled(self._share) as number:
            T.buffer_store(part, part[0] + T.cast(held[number], "float64"), [0])
        whole = reduce_float(part[0], dtype="float64")
        cluster_barrier()  # every block has begun, and is done with earlier sums
        send(whole, self._sums, self._warp, self._cluster.blocks)
        cluster_barrier()
        before = self._before(self._pieces_sum())
        T.buffer_store(self.total, from_lane(before + self._pieces_sum(), WARP - 1, "float64"), [0])

    def token(self, uniform: Expr, put: Callable[[Expr], None]) -> None:
        """Calls put, in one thread, with the first token up to which more than ``uniform`` of all weight lies.

        Rounded past the end, it is the last one that has any weight.
        """
        target = T.Bind(T.cast(uniform, "float64") * self.total[0])
        start = self._before(self._pieces_sum())
        piece, start = self._search(self._pieces, start, target, self._piece_sum)
        with when(self._warp == piece):
            mine = variable(T.float64(0.0), "float64")
            held = self._load(piece, lambda number: self._lane * self._share + number)
            with unrolled(self._share) as number:
                T.buffer_store(mine, mine[0] + T.cast(held[number], "float64"), [0])
            start = T.Bind(start + self._before(mine[0]))
            place, _ = self._search(self._share, start, target, lambda number: T.cast(held[number], "float64"))
            with when(self._lane == 0):
                put(T.cast(piece * (self._share * WARP) + place, "int64"))

    def _search(self, count: int, start: Expr, target: Expr, value: Callable[[Expr], Expr]) -> tuple[Expr, Expr]:
        """The first of 32 * ``count`` values with which their running sum exceeds ``target``, and the sum before it.

        A lane has ``count`` values in a row; its sum begins at ``start``. If none does, the last value above 0.
        """
        running, before = variable(start, "float64"), variable(start, "float64")
        found, last = variable(T.int32(-1), "int32"), variable(T.int32(-1), "int32")
        with unrolled(count) as i:
            amount = T.Bind(value(i))
            with when(amount > T.float64(0.0)):
                T.buffer_store(last, self._lane * count + i, [0])
                with when(T.And(found[0] < 0, running[0] + amount > target)):
                    T.buffer_store(found, last[0], [0])
                    T.buffer_store(before, running[0], [0])
                T.buffer_store(running, running[0] + amount, [0])
        lane = first_lane(found[0] >= 0)
        from_last = reduce_int32(last[0], "max")
        number = T.Select(lane < 0, T.max(from_last, 0), from_lane(found[0], T.max(lane, 0), "int32"))
        return T.Bind(number), from_lane(before[0], T.max(lane, 0), "float64")

    def _before(self, value: Expr) -> Expr:
        """The sum of float64 ``value`` over the lanes before this one."""
        return T.Bind(running_sum(value) - value)

    def _pieces_sum(self) -> Expr:
        """The sum of a lane's pieces."""
        total = variable(T.float64(0.0), "float64")
        with T.serial(0, self._pieces) as i:
            T.buffer_store(total, total[0] + self._piece_sum(i), [0])
        return T.Bind(total[0])

    def _piece_sum(self, i: Expr) -> Expr:
        piece = self._lane * self._pieces + i
        return T.if_then_else(piece < self._cluster.warps, self._sums[piece], T.float64(0.0))

    def _load(self, piece: Expr, place: Callable[[Expr], Expr]) -> Buffer:
        """A lane's share of a warp's piece, all loads under way together; 0 behind the last weight."""
        held = registers(self._share)
        with unrolled(self._share) as number:
            # Loads that no branch guards can be under way together.
            i = T.Bind(piece * (self._share * WARP) + place(number))
            weight = T.Bind(self._weight(T.min(i, self._cluster.extent - 1)))
            T.buffer_store(held, T.Select(i < self._cluster.extent, weight, T.float32(0.0)), [number])
        return held
