"""From the fused projection of confirmed tokens to a drafter's rings, of all its layers, in one launch.

A team takes a key head of a layer and token, and the value head beside it.
"""

from collections.abc import Callable

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.ring import RingRows
from dspark_compiler.schedules.simt.attention_place import Pieces
from dspark_compiler.schedules.simt.awaited import Ask, await_numbers, hands_on
from dspark_compiler.schedules.simt.cache_rows import Tensors
from dspark_compiler.schedules.simt.qkv_prologue import Head, HeadPlace, Prologue
from dspark_compiler.schedules.simt.stored import copy_line
from dspark_compiler.schedules.simt.threads import TEAM, launch, registers
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once, when

_THREADS = 128
_TEAMS = _THREADS // TEAM


@made_once
def ring_prologue(name: str, rows: RingRows, work: Prologue, *, awaits: bool = False) -> tvm.tirx.PrimFunc:
    """Kernel that puts keys, normed and rotated, and values to rings as write_ring does (schedules/ring.py).

    Arguments: x float32 [b S, L (G D + G Dv)], [k_weight.0 … float32 [D] with eps], [cos, sin float32 [b,1,S,D] with
    rope], k_ring.0, v_ring.0, … float32 [B,G,W,D or Dv], length, [sequence], [count] int32 [b].
    ``awaits``: the projection may be yet to come (awaited.py).
    """
    args = _args(rows, work)

    def body(*buffers: Buffer) -> None:
        tensors = Tensors(dict(zip((arg.name for arg in args), buffers, strict=True)))
        teams = rows.shape.rows * rows.shape.width * rows.layers * rows.shape.heads
        with launch((-(-teams // _TEAMS),), _THREADS) as (group, thread):
            team, lane = T.Bind(group * _TEAMS + thread // TEAM), T.Bind(thread % TEAM)
            task = _Task(rows, tensors, T.Bind(T.min(team, teams - 1)))
            key, value = task.key(work, lane), _Value(rows, tensors, task, lane)
            asks = [*key.asks, *value.asks]
            if awaits:
                key.load_factors()
                await_numbers(asks)
            else:
                for ask in asks:
                    ask.load()
                key.load_factors()
            key.rotate()
            for layer in range(rows.layers):
                with when(T.And(team < teams, T.And(task.layer == layer, task.stays))):
                    task.store("k", layer, key)
                    task.store("v", layer, value)

    function = kernel(name, args, body)
    return hands_on(function, args, awaits=["x"]) if awaits else function


def _args(rows: RingRows, work: Prologue) -> list[Arg]:
    shape, layers = rows.shape, range(rows.layers)
    dims = {"k": shape.dim, "v": rows.value_dim}
    return [
        Arg("x", (shape.rows * shape.width, rows.columns * rows.layers)),
        *(Arg(f"k{layer}_weight", (shape.dim,)) for layer in layers if work.eps is not None),
        *(Arg(each, (shape.rows, 1, shape.width, shape.dim)) for each in ("cos", "sin") if work.rope),
        *(
            Arg(f"{part}{layer}_ring", (shape.batch, shape.heads, shape.places, dim))
            for layer in layers
            for part, dim in dims.items()
        ),
        *(Arg(each, (shape.rows,), "int32") for each in rows.control),
    ]


class _Task:
    """Number ``number`` of the heads of all layers and tokens, token by token."""

    def __init__(self, rows: RingRows, tensors: Tensors, number: Expr) -> None:
        self._rows, self._tensors = rows, tensors
        shape = rows.shape
        each = rows.layers * shape.heads
        self.line = T.Bind(number // each)
        self.layer, self.head = T.Bind(number % each // shape.heads), T.Bind(number % shape.heads)
        self._row, self._token = T.Bind(self.line // shape.width), T.Bind(self.line % shape.width)
        self.start = T.Bind(self.layer * rows.columns)
        count = T.min(tensors["count"][self._row], shape.width) if rows.count else T.int32(shape.width)
        real = T.Bind(count)
        self._sequence = T.Bind(tensors["sequence"][self._row]) if rows.sequence else self._row
        self._place = T.Bind((tensors["length"][self._row] + self._token) % shape.places)
        self.stays = T.And(self._token < real, self._token >= real - shape.places)
        """Whether the token is real, and none behind it takes its place."""

    def key(self, work: Prologue, lane: Expr) -> Head:
        """The key."""
        norms = [(self.layer == layer, f"k{layer}_weight") for layer in range(self._rows.layers)]
        dim = self._rows.shape.dim
        start = T.Bind(self.start + self.head * dim)
        return Head(dim, work, self._tensors, HeadPlace(self._row, self._token, self.line, start, norms), lane)

    def store(self, part: str, layer: int, row: "Head | _Value") -> None:
        """Puts a row to its place in the ring of a layer's "k" or "v"."""
        ring = self._tensors[f"{part}{layer}_ring"]
        row.for_lines(lambda d, line: row.copy_to(ring, (self._sequence, self.head, self._place, d), line))


class _Value:
    """The value beside a key, a few elements in a row a lane."""

    def __init__(self, rows: RingRows, tensors: Tensors, task: _Task, lane: Expr) -> None:
        self._pieces = Pieces.of(rows.value_dim, "float32")
        self._found = registers((self._pieces.count, self._pieces.each))
        self._lane = lane
        start = T.Bind(task.start + rows.shape.heads * rows.shape.dim + task.head * rows.value_dim)
        self.asks = [
            Ask(self._found, (line, 0), tensors["x"], (task.line, T.Bind(start + self._element(line))), self._each)
            for line in range(self._pieces.count)
        ]

    @property
    def _each(self) -> int:
        return self._pieces.each

    def _element(self, line: int) -> Expr:
        return self._pieces.element(self._lane, line)

    def for_lines(self, emit: Callable[[Expr, int], None]) -> None:
        """Calls emit(d, line) for each line, whose first number is element d."""
        for line in range(self._pieces.count):
            emit(T.Bind(self._element(line)), line)

    def copy_to(self, target: Buffer, place: tuple[Expr, ...], line: int) -> None:
        """target[place] and behind it = a line."""
        copy_line(target, place, self._found, line)
