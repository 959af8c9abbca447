"""A weight on its way to the tiles that matrix instructions read: eight numbers of a row a thread, plain or of codes.

Codes are decoded before they go to local memory, where all numbers have the type that is multiplied. It holds every
code exactly. A row's scale is left to its sums, a group's is multiplied in, by which the number is rounded.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.stored import copy, narrow, widen
from dspark_compiler.schedules.simt.threads import TEAM, registers
from dspark_compiler.schedules.simt.weights import WORDS, WeightForm, WeightReader, decode
from dspark_compiler.schedules.tir import Buffer, Expr, when

PIECE = 8  # numbers
_WORD_BITS = 32


class WeightPieces:
    """A thread's pieces of a step: as many as ``shape`` says, brought to registers first. Made at the top of a kernel.

    Args:
        form: how the weight is stored.
        stored: what is multiplied, float16 or uint16 for bfloat16's bits.
        of: the kernel's buffers by name.
        shape: of the pieces.
    """

    def __init__(self, form: WeightForm, stored: str, of: dict[str, Buffer], shape: tuple[int, ...]) -> None:
        self._form, self._stored, self._of = form, stored, of
        self._reader = WeightReader(form, of)
        if form.format is None:
            self._held = registers((*shape, PIECE), form.stored)
            return
        self._words = PIECE * form.format.bits // _WORD_BITS
        self._held = registers((*shape, self._words), "uint32")
        self._names = ("scale", "offset")[: 1 + form.format.offsets] if form.by_group else ()
        self._factors = registers((*shape, max(1, len(self._names))))

    def bring(self, at: tuple[int, ...], row: Expr, step: Expr, line: Expr) -> None:
        """Loads piece ``line`` of the eight that a step takes of a row; zeros behind the row's end."""
        column = T.Bind((step * TEAM + line) * PIECE)
        if self._form.format is None:
            self._bring_plain(at, row, column)
            return
        # Neighbouring steps' pieces lie in one access (simt/weights.py).
        access = T.Bind(step // self._form.pieces * TEAM + line)
        first = T.Bind(access * WORDS + step % self._form.pieces * self._words)
        copy(self._held, (*at, 0), self._of["w"], (row, first), self._words)
        for number, name in enumerate(self._names):
            T.buffer_store(self._factors, self._reader.factor(name, row, column), [*at, number])

    def put(self, at: tuple[int, ...], tile: Buffer, place: Expr) -> None:
        """Stores a piece as what is multiplied."""
        if self._form.stored == self._stored:
            copy(tile, (place,), self._held, (*at, T.int32(0)), PIECE)
            return
        decoded = registers(PIECE)
        for e in range(PIECE):
            T.buffer_store(decoded, self._number(at, e), [e])
        with T.vectorized(0, PIECE) as e:  # devices round two numbers at once
            T.buffer_store(tile, narrow(decoded[e], self._stored), [place + e])

    def scaled(self, total: Expr, row: Expr) -> Expr:
        """A sum of products with a row of the weight, times what is left of the scale."""
        if self._form.format is None or self._form.by_group:
            return total
        return total * self._reader.factor("scale", row, T.int32(0))

    def _bring_plain(self, at: tuple[int, ...], row: Expr, column: Expr) -> None:
        padded = self._form.padded
        with zeroed(self._held, at, PIECE, column < padded, whole=padded % (TEAM * PIECE) == 0):
            copy(self._held, (*at, 0), self._of["w"], self._form.place(row, column), PIECE)

    def _number(self, at: tuple[int, ...], e: int) -> Expr:
        """A number of a piece as float32."""
        form = self._form.format
        if form is None:
            return widen(self._held[(*at, e)], self._form.stored)
        word, bit = divmod(e * form.bits, _WORD_BITS)
        held = self._held[(*at, word)]
        value = decode(held >> T.uint32(bit) if bit else held, form.codes)
        if self._names:
            value = value * self._factors[(*at, 0)]
        return value + self._factors[(*at, 1)] if len(self._names) > 1 else value


@contextmanager
def zeroed(held: Buffer, index: tuple[int, ...], count: int, inside: Expr, *, whole: bool) -> Iterator[None]:
    """Zeros in ``held`` but where the body of the statement is done, which is where ``inside``; ``whole``: always."""
    if whole:
        yield
        return
    for e in range(count):
        T.buffer_store(held, T.cast(T.int32(0), held.dtype), [*index, e])
    with when(inside):
        yield
