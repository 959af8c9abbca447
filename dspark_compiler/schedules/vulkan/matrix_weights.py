"""A subgroup's part of a weight, as matrices: of float16 straight from memory, of codes by way of the chip's memory.

Codes are decoded as soon as they are there, which is before x is as a rule: a sixteen of rows and a step at a time, of
which a team has a row and a lane eight columns, as they lie in memory (simt/weights.py). A row's scale is left to its
sums, a group's is multiplied in, by which the number is rounded.
"""

from collections.abc import Sequence
from typing import Protocol

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.eighths import packed
from dspark_compiler.schedules.simt.stored import copy
from dspark_compiler.schedules.simt.threads import TEAM, registers
from dspark_compiler.schedules.simt.weights import WORDS, WeightForm, WeightReader
from dspark_compiler.schedules.tir import Buffer, Expr
from dspark_compiler.schedules.vulkan.matrices import SIDE, SUBGROUP, Matrices
from dspark_compiler.schedules.vulkan.matrix_cut import CODES_WORDS, PITCH_OF_X, STEP, TILES, MatrixCut

_PIECE = 8  # columns of a lane
_TEAMS = SUBGROUP // TEAM
_TURNS = SIDE // _TEAMS  # rows of a sixteen that a team has


class Weight(Protocol):
    """What a subgroup holds of a weight: ``ahead`` steps of some sixteens of rows.

    Matrix ``(place * TILES + tile) * lines + line`` is a tile of the step at a place, of sixteen ``line``.
    """

    per: int  # steps that are brought together
    matrices: Buffer

    def bring(self, place: int, step: Expr) -> None:
        """Asks for ``per`` steps from ``step`` on, to be held from place ``place`` on; past the end for some again."""

    def settle(self, count: int) -> None:
        """Makes matrices of the first ``count`` steps that were brought; all of the subgroup get here together."""


class TiledWeight:
    """See Weight: float16 in tiles, which are matrices as they come."""

    per = 1

    def __init__(
        self, cut: MatrixCut, w: Buffer, depth: int, matrices: Matrices, rows: Sequence[Expr], start: Expr
    ) -> None:
        """``rows``: the first of each sixteen; ``start``: the subgroup's first column."""
        self._lines, self._w, self._depth, self._instructions = cut.lines, w, depth, matrices
        self._rows, self._start = rows, start
        self.matrices = matrices.left(cut.ahead * TILES * cut.lines)

    def bring(self, place: int, step: Expr) -> None:
        """See Weight."""
        for tile in range(TILES):
            column = T.Bind(T.min(self._start + (step * STEP + tile * SIDE), self._depth - SIDE))
            for line, row in enumerate(self._rows):
                number = (place * TILES + tile) * self._lines + line
                self._instructions.load_tile(self.matrices, number, self._w, row, column)

    def settle(self, count: int) -> None:
        """See Weight."""


def steps_of_a_group(group: int, per: int) -> int:
    """Of the ``per`` steps of an access, a power of two, how many in a row have a group's scale in common."""
    shared = per
    while shared > 1 and group % (shared * STEP):
        shared //= 2
    return shared


class CodedWeight:
    """See Weight: codes, which go through ``memory`` from word ``region`` on, two sixteens of rows in turn."""

    def __init__(
        self,
        cut: MatrixCut,
        form: WeightForm,
        of: dict[str, Buffer],
        matrices: Matrices,
        rows: Sequence[Expr],
        start: Expr,
        lane: Expr,
        memory: tuple[Buffer, Expr],
    ) -> None:
        """``rows`` and ``start`` as of TiledWeight; ``lane``: of the subgroup."""
        assert form.format is not None
        self.per = form.pieces
        self._form, self._reader, self._w, self._instructions = form, WeightReader(form, of), of["w"], matrices
        self._start, (self._memory, self._region) = start, memory
        self._lane, self._team = T.Bind(lane % TEAM), T.Bind(lane // TEAM)
        self._rows = [[T.Bind(row + (turn * _TEAMS + self._team)) for turn in range(_TURNS)] for row in rows]
        held = cut.ahead // self.per
        self._codes = registers((held, cut.lines, _TURNS, WORDS), "uint32")
        self._shared = steps_of_a_group(form.format.group, self.per)
        self._groups = self.per // self._shared if form.by_group else 0  # of a lane's access
        self._scales = registers((held, cut.lines, _TURNS, max(1, self._groups)))
        self._lines = cut.lines
        self.matrices = matrices.left(cut.ahead * TILES * cut.lines)

    def bring(self, place: int, step: Expr) -> None:
        """See Weight."""
        at, first = place // self.per, T.Bind(self._start // STEP + step)
        access = T.Bind(T.min(first // self.per * TEAM + self._lane, self._form.accesses - TEAM + self._lane))
        for line, rows in enumerate(self._rows):
            for turn, row in enumerate(rows):
                copy(self._codes, (at, line, turn, 0), self._w, (row, access * WORDS), WORDS)
                for number in range(self._groups):
                    column = self._reader.column(access, number * self._shared)
                    scale = self._reader.factor("scale", row, column)
                    T.buffer_store(self._scales, scale, [at, line, turn, number])

    def settle(self, count: int) -> None:
        """See Weight."""
        for number, (place, line) in enumerate((p, n) for p in range(count) for n in range(self._lines)):
            # Of the two regions others may still read the one before.
            region = T.Bind(self._region + number % 2 * (CODES_WORDS // 2))
            self._decode(place, line, region)
            self._instructions.meet()
            for tile in range(TILES):
                matrix, start = (place * TILES + tile) * self._lines + line, region + tile * (SIDE // 2)
                self._instructions.load(self.matrices, matrix, self._memory, start, PITCH_OF_X)

    def _decode(self, place: int, line: int, region: Expr) -> None:
        """Puts a step of a sixteen of rows into memory, as pairs of float16."""
        at, piece = divmod(place, self.per)
        for turn in range(_TURNS):
            words, numbers = registers(_PIECE // 2), []
            for e in range(_PIECE):
                number = self._reader.number(self._codes, (at, line, turn), piece, e)
                if self._groups:
                    number = number * self._scales[at, line, turn, piece // self._shared]
                numbers.append(T.Bind(T.cast(number, "float16")))
            for pair in range(_PIECE // 2):
                T.buffer_store(words, packed(numbers[2 * pair], numbers[2 * pair + 1]), [pair])
            row = turn * _TEAMS + self._team
            copy(self._memory, (region + row * PITCH_OF_X + self._lane * (_PIECE // 2),), words, (0,), _PIECE // 2)
