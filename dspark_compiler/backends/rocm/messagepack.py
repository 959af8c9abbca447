"""MessagePack, as far as the metadata of code objects uses it: maps, arrays, texts, whole numbers, truths."""

import struct
from collections.abc import Iterator
from typing import Any

_NUMBERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_ARRAYS, _MAPS = {0xDC: ">H", 0xDD: ">I"}, {0xDE: ">H", 0xDF: ">I"}
_PLAIN = {0xC0: None, 0xC2: False, 0xC3: True}


def unpack(data: bytes) -> Any:
    """The value that bytes begin with.

    Raises:
        ValueError: a kind of value that metadata has none of, or the end comes too soon.
    """
    try:
        return _Reader(data).value()
    except (struct.error, IndexError) as error:
        raise ValueError(f"metadata is cut short: {error}") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def value(self) -> Any:
        """The value that comes next."""
        kind = self._data[self._at]
        self._at += 1
        if kind < 0x80:
            return kind
        if kind >= 0xE0:
            return kind - 0x100
        if kind in _PLAIN:
            return _PLAIN[kind]
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        for short, mask, long, make in (
            (0x80, 0x0F, _MAPS, self._map),
            (0x90, 0x0F, _ARRAYS, self._array),
            (0xA0, 0x1F, _TEXTS, self._text),
        ):
            if kind & ~mask == short:
                return make(kind & mask)
            if kind in long:
                return make(self._number(long[kind]))
        raise ValueError(f"metadata holds a value of kind {kind:#x}")

    def _number(self, form: str) -> int:
        (number,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return int(number)

    def _text(self, size: int) -> str:
        self._at += size
        return self._data[self._at - size : self._at].decode()

    def _array(self, size: int) -> list[Any]:
        return list(self._values(size))

    def _map(self, size: int) -> dict[Any, Any]:
        values = list(self._values(2 * size))
        return dict(zip(values[::2], values[1::2], strict=True))

    def _values(self, count: int) -> Iterator[Any]:
        return (self.value() for _ in range(count))
