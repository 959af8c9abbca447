"""Keys and values of a turn of slots while they are on their way: in words, as they come from memory.

A compiler gives a number of two bytes a register of its own, and so many that what is on its way ends up in slower
memory. So numbers are taken out of their words where they are used.
"""

from tvm import DataType
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.stored import copy, copy_words
from dspark_compiler.schedules.simt.threads import registers
from dspark_compiler.schedules.tir import Buffer, Expr

_WORD = 32  # bits


class Held:
    """Elements of ``dtype`` of some slots, ``own`` of each, which come ``each`` at a time."""

    def __init__(self, slots: int, own: int, each: int, dtype: str) -> None:
        self._dtype, self._bits = dtype, int(DataType(dtype).bits)
        self._in_words = self._bits < _WORD and each * self._bits % _WORD == 0
        self._per = _WORD // self._bits if self._in_words else 1
        self._units = registers((slots, own // self._per), "uint32" if self._in_words else dtype)

    def copy(self, at: tuple[int, int], source: Buffer, index: tuple[Expr, ...], count: int) -> None:
        """Elements ``at`` (slot and number) and behind it = source[index] and behind it."""
        move = copy_words if self._in_words else copy
        move(self._units, (at[0], at[1] // self._per), source, index, count)

    def element(self, slot: int, number: int) -> Expr:
        """As it is stored."""
        if not self._in_words:
            return self._units[slot, number]
        word, place = divmod(number, self._per)
        return T.Shuffle([T.reinterpret(f"{self._dtype}x{self._per}", self._units[slot, word])], [place])
