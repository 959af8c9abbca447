"""Weights as kernels read them: rows of 16-byte accesses, whose numbers are plain or codes with factors.

A team of eight reads 128 bytes of a row together. So that its lanes read x side by side too, a lane's codes are no run
along the row but pieces of eight, which those of the other lanes lie between: piece u of lane l of the team's access t
begins at column ((t * pieces + u) * 8 + l) * 8. Codes come in words of 32 bits, the first in the lowest ones, integers
with half their range added. Plain numbers have one piece an access.

Float16 lies in tiles of 16 x 16 where sixteens divide it, each 512 bytes in a row: what reads it as matrices takes a
tile at once, and four neighbouring rows' share of a tile is still a whole cache line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tvm.tirx.script.builder import ir as T

from dspark_compiler.quantization.weight_format import CodeType, WeightFormat
from dspark_compiler.schedules.simt.stored import copy, decode_e4m3, elements_at_once, widen
from dspark_compiler.schedules.simt.threads import TEAM, registers
from dspark_compiler.schedules.tir import Arg, Buffer, Expr

WORDS = 4  # of an access
TILE = 16  # rows and columns
_PIECE = 8
_WORD_BITS = 32
_BIG = 0x4B000000  # float32's bits of 2^23: adding n below 2^23 to the bits adds n to the number
_TWO_23 = float(1 << 23)


@dataclass(frozen=True)
class WeightForm:
    """W [features, depth] as ``stored``: a type of numbers, or a WeightFormat's tag, its scales as ``scale_dtype``."""

    features: int
    depth: int
    stored: str
    scale_dtype: str = "float32"

    @cached_property
    def format(self) -> WeightFormat | None:
        """That of codes."""
        return WeightFormat.parse(self.stored)

    @property
    def piece(self) -> int:
        """Numbers along the row that a lane takes without a gap."""
        return _PIECE if self.format else min(_PIECE, elements_at_once(self.stored))

    @property
    def pieces(self) -> int:
        """Of a lane's access."""
        return WORDS * _WORD_BITS // self.format.bits // _PIECE if self.format else 1

    @property
    def padded(self) -> int:
        """Columns of a row as stored."""
        step = self.piece * self.pieces * (TEAM if self.format else 1)
        return -(-self.depth // step) * step

    @property
    def tiled(self) -> bool:
        """Whether it lies in tiles."""
        return self.stored == "float16" and self.features % TILE == 0 and self.depth % TILE == 0

    def place(self, row: Expr, column: Expr) -> tuple[Expr, Expr]:
        """Where plain numbers from a row and column on lie in "w", as many of them as a tile's half row has."""
        if not self.tiled:
            return row, column
        inner, across = T.bitwise_and(row, TILE - 1), T.bitwise_and(column, TILE - 1)
        return row - inner, column // TILE * (TILE * TILE) + inner * TILE + across

    @property
    def accesses(self) -> int:
        """Of a row, by all lanes together."""
        return self.padded // (self.piece * self.pieces)

    @property
    def by_group(self) -> bool:
        """Whether scales belong to groups of columns, which sums are multiplied by as they grow."""
        return self.format is not None and self.format.group > 0

    def args(self) -> list[Arg]:
        """The weight, and its scales and offsets if it has some."""
        if self.format is None:
            return [Arg("w", (self.features, self.padded), self.stored)]
        groups = (self.features, self.format.groups(self.depth))
        return [
            Arg("w", (self.features, self.padded * self.format.bits // _WORD_BITS), "uint32"),
            Arg("scale", groups, self.scale_dtype),
            *([Arg("offset", groups)] if self.format.offsets else []),
        ]


class WeightReader:
    """Emits reads of a weight; ``of`` has its buffers by name."""

    def __init__(self, form: WeightForm, of: dict[str, Buffer]) -> None:
        self.form, self._of = form, of

    def load(self, accesses: int, rows: int, where: Callable[[int, int], tuple[Expr, Expr]]) -> Buffer:
        """A lane's accesses as stored, all on their way together; ``where`` gives row and number of each."""
        form, w = self.form, self._of["w"]
        each = WORDS if form.format else form.piece
        held = registers((accesses, rows, each), w.dtype)
        for i in range(accesses):
            for line in range(rows):
                row, access = where(i, line)
                copy(
                    held, (i, line, 0), w, (row, access * each) if form.format else form.place(row, access * each), each
                )
        return held

    def column(self, access: Expr, piece: int) -> Expr:
        """Where a piece of a lane's access begins in the row."""
        form = self.form
        if form.pieces == 1:
            return access * form.piece
        return (access // TEAM * (form.pieces * TEAM) + piece * TEAM + access % TEAM) * form.piece

    def number(self, held: Buffer, at: tuple[int, ...], piece: int, e: int) -> Expr:
        """Number e of a piece that was loaded, unscaled."""
        form = self.form.format
        if form is None:
            return widen(held[(*at, e)], self.form.stored)
        word, bit = divmod((piece * _PIECE + e) * form.bits, _WORD_BITS)
        return decode(held[(*at, word)] >> T.uint32(bit) if bit else held[(*at, word)], form.codes)

    def factor(self, name: str, row: Expr, column: Expr) -> Expr:
        """The "scale" or "offset" of a column, in padding of the last."""
        form = self.form.format
        assert form is not None
        factors = self._of[name]
        groups = form.groups(self.form.depth)
        group = T.min(column // form.group, groups - 1) if groups > 1 else T.int32(0)
        return widen(factors[row, group], factors.dtype)

    def element(self, row: Expr, column: Expr) -> Expr:
        """One number of the weight, wherever it lies."""
        form = self.form.format
        if form is None:
            return widen(self._of["w"][self.form.place(row, column)], self._of["w"].dtype)
        pieces = self.form.pieces
        access = column // (_PIECE * TEAM * pieces) * TEAM + column // _PIECE % TEAM
        bit = (column // (_PIECE * TEAM) % pieces * _PIECE + column % _PIECE) * form.bits
        word = self._of["w"][row, access * WORDS + bit // _WORD_BITS]
        value = decode(word >> T.cast(bit % _WORD_BITS, "uint32"), form.codes) * self.factor("scale", row, column)
        return value + self.factor("offset", row, column) if form.offsets else value


def pack_tiles(weight: np.ndarray) -> np.ndarray:
    """W [N, K] with each tile of 16 x 16 in a row; N and K are multiples of it."""
    features, depth = weight.shape
    tiles = weight.reshape(features // TILE, TILE, depth // TILE, TILE).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(features, depth)


def decode(word: Expr, codes: CodeType) -> Expr:
    """The code in the lowest bits of a word, as float32."""
    if codes == "float8_e4m3":
        return decode_e4m3(word)
    mask, half = (15, 8) if codes == "int4" else (255, 128)
    return T.reinterpret("float32", (word & T.uint32(mask)) | T.uint32(_BIG)) - T.float32(_TWO_23 + half)


def pack_codes(form: WeightFormat, codes: np.ndarray) -> np.ndarray:
    """Codes [N, K], int8 or bytes of e4m3, as uint32 [N, *] in the order of this file, zeros behind each row."""
    features, depth = codes.shape
    layout = WeightForm(features, depth, form.tag)
    plain = codes.view(np.uint8)
    if form.codes != "float8_e4m3":
        plain = (codes.astype(np.int16) + (1 << form.bits - 1)).astype(np.uint8)
    plain = np.pad(plain, [(0, 0), (0, layout.padded - depth)])
    order = plain.reshape(features, -1, layout.pieces, TEAM, _PIECE).swapaxes(2, 3)
    flat = np.ascontiguousarray(order).reshape(features, -1)
    if form.codes != "int4":
        return flat.view("<u4")
    halves: np.ndarray = flat[:, 0::2] | (flat[:, 1::2] << 4)
    return halves.view("<u4")
