"""Rows of attention out of the projection: queries, new keys and new values, which a work group keeps for itself."""

import math
from abc import ABC, abstractmethod

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.attention_held import Held
from dspark_compiler.schedules.simt.attention_place import Place
from dspark_compiler.schedules.simt.attention_totals import THREADS
from dspark_compiler.schedules.simt.awaited import Ask
from dspark_compiler.schedules.simt.cache_rows import NewSlot, Tensors
from dspark_compiler.schedules.simt.projected_heads import Task, make_heads
from dspark_compiler.schedules.simt.qkv_prologue import Head, Prologue
from dspark_compiler.schedules.simt.stored import copy, copy_line, narrow
from dspark_compiler.schedules.simt.threads import barrier, registers, shared
from dspark_compiler.schedules.tir import Buffer, Expr, when, widest_vector

_VECTOR = 4  # numbers of the projection that a thread reads at once


class ProjectedRows(ABC):
    """See Rows: queries, new keys and values in shared memory; where the others live is for a subclass to say."""

    def __init__(self, place: Place, work: Prologue, tensors: Tensors) -> None:
        self.place, self._work, self.tensors = place, work, tensors
        self.first_new: Expr | None = place.span.used
        shape, dtype = place.problem.shape, place.problem.dtype
        self._q = shared((place.count, shape.head_dim))
        self._new = {
            "k": shared((shape.width, shape.head_dim), dtype),
            "v": shared((shape.width, shape.value_dim), dtype),
        }

    def prepare(self, has_new: Expr, writes: Expr | None) -> None:
        """Brings the work group's queries and, where its slots may be new, new keys and values; one ``writes`` them."""
        place, dtype = self.place, self.place.problem.dtype
        values = _NewValues(place, self.tensors)

        def store(task: Task, head: Head) -> None:
            with when(task.is_query):
                head.for_lines(lambda d, line: head.copy_to(self._q, (task.task, d), line))
            with when(T.And(has_new, task.is_key)):
                keys = head.narrowed(dtype)
                head.for_lines(lambda d, line: copy_line(self._new["k"], (task.token, d), keys, line))
                if writes is not None:
                    slot = NewSlot(place.problem, self.tensors, place.row, task.token)
                    with when(T.And(writes, slot.fits)):
                        head.for_lines(lambda d, line: slot.copy("k", place.head, d, keys, line))

        make_heads(place, self._work, self.tensors, store, values.asks)
        with when(has_new):
            values.store(self._new["v"], writes)
        barrier()

    def query(self, i: int, target: Buffer, at: tuple[int, int], element: Expr, count: int) -> None:
        """See Rows."""
        copy(target, at, self._q, (i, element), count)

    @abstractmethod
    def fetch(self, name: str, held: Held, at: tuple[int, int], slot: Expr, element: Expr, count: int) -> None:
        """See Rows."""

    def fetch_new(self, name: str, held: Held, at: tuple[int, int], token: Expr, element: Expr, count: int) -> None:
        """See Rows."""
        held.copy(at, self._new[name], (token, element), count)

    def fetch_scale(self, name: str, target: Buffer, at: int, slot: Expr) -> None:
        """See Rows; caches that have scales are written by a launch of their own."""
        raise AssertionError("a step reads no quantized cache")


class _NewValues:
    """New values of the work group's head, some elements in a row a thread."""

    def __init__(self, place: Place, tensors: Tensors) -> None:
        self._place, self._tensors, shape = place, tensors, place.problem.shape
        self._each = widest_vector(math.gcd(shape.head_dim, shape.value_dim), _VECTOR)
        self._pieces = shape.width * shape.value_dim // self._each
        self._turns = -(-self._pieces // THREADS)
        self._found = registers((self._turns, self._each))
        start = (shape.heads + shape.kv_heads) * shape.head_dim + place.head * shape.value_dim
        self.asks = []
        for turn in range(self._turns):
            token, d = self._element(T.min(self._piece(turn), self._pieces - 1))
            index = (T.Bind(place.row * shape.width + token), T.Bind(start + d))
            self.asks.append(Ask(self._found, (turn, 0), tensors["x"], index, self._each))

    def store(self, target: Buffer, writes: Expr | None) -> None:
        """target[token, element], and where ``writes`` in the cache."""
        dtype = self._place.problem.dtype
        stored = registers((self._turns, self._each), dtype)
        for turn in range(self._turns):
            piece = T.Bind(self._piece(turn))
            with when(piece < self._pieces):
                token, d = self._element(piece)
                for e in range(self._each):
                    T.buffer_store(stored, narrow(self._found[turn, e], dtype), [turn, e])
                copy_line(target, (token, d), stored, turn)
                if writes is not None:
                    self._write(stored, turn, (token, d), writes)

    def _write(self, stored: Buffer, turn: int, element: tuple[Expr, Expr], writes: Expr) -> None:
        place, (token, d) = self._place, element
        slot = NewSlot(place.problem, self._tensors, place.row, token)
        with when(T.And(writes, slot.fits)):
            slot.copy("v", place.head, d, stored, turn)
            slot.store_position(place.head, d == 0)

    def _piece(self, turn: int) -> Expr:
        return turn * THREADS + self._place.thread

    def _element(self, piece: Expr) -> tuple[Expr, Expr]:
        """Token and first element of a piece."""
        each = self._place.problem.shape.value_dim // self._each
        return T.Bind(piece // each), T.Bind(piece % each * self._each)
