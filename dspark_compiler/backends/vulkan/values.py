"""Values of a kernel: scalars and vectors of any length, as SPIR-V ids.

SPIR-V's vectors end at four lanes; a longer one is several of them ("parts").
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dspark_compiler.backends.vulkan.spirv.body import Body
from dspark_compiler.backends.vulkan.spirv.numbers import Op
from dspark_compiler.backends.vulkan.spirv.types import BOOL, UINT32, Scalar, constant, type_id

_WIDEST = 4


@dataclass(frozen=True)
class Value:
    """``lanes`` numbers of one type, in one id for every four lanes."""

    scalar: Scalar
    lanes: int
    parts: tuple[int, ...]

    @property
    def id(self) -> int:
        """The id of a value of one part."""
        assert len(self.parts) == 1
        return self.parts[0]


def widths(lanes: int) -> list[int]:
    """Lanes of each part."""
    return [_WIDEST] * (lanes // _WIDEST) + ([lanes % _WIDEST] if lanes % _WIDEST else [])


class Values:
    """Makes, takes apart and regroups values."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.module = body.module

    def type(self, scalar: Scalar, lanes: int = 1) -> int:
        """The id of a type of at most four lanes."""
        return type_id(self.module, scalar, lanes)

    def constant(self, scalar: Scalar, value: float, lanes: int = 1) -> Value:
        """A constant, the same in all lanes."""
        return Value(scalar, lanes, tuple(constant(self.module, scalar, value, width) for width in widths(lanes)))

    def map(self, op: Op, result: Scalar, *operands: Value, before: Sequence[int] = ()) -> Value:
        """An instruction applied lane by lane; ``before`` are literal operands in front."""
        lanes = operands[0].lanes
        assert all(operand.lanes == lanes for operand in operands)
        parts = [
            self.body.emit(op, self.type(result, width), *before, *(operand.parts[i] for operand in operands))
            for i, width in enumerate(widths(lanes))
        ]
        return Value(result, lanes, tuple(parts))

    def select(self, condition: Value, chosen: Value, other: Value) -> Value:
        """Lane by lane, both sides computed; one condition may decide for all lanes."""
        if condition.lanes == 1 and chosen.lanes > 1:
            condition = self.broadcast(condition, chosen.lanes)
        return self.map(Op.SELECT, chosen.scalar, condition, chosen, other)

    def lane(self, value: Value, lane: int) -> Value:
        """One lane."""
        if value.lanes == 1:
            return value
        part, offset = divmod(lane, _WIDEST)
        if widths(value.lanes)[part] == 1:
            return Value(value.scalar, 1, (value.parts[part],))
        kind = self.type(value.scalar)
        return Value(value.scalar, 1, (self.body.emit(Op.COMPOSITE_EXTRACT, kind, value.parts[part], offset),))

    def split(self, value: Value) -> list[Value]:
        """All lanes."""
        return [self.lane(value, lane) for lane in range(value.lanes)]

    def join(self, pieces: Sequence[Value]) -> Value:
        """The lanes of all pieces, in order."""
        scalar, lanes = pieces[0].scalar, sum(piece.lanes for piece in pieces)
        if len(pieces) == 1:
            return pieces[0]
        if all(piece.lanes % _WIDEST == 0 for piece in pieces):
            return Value(scalar, lanes, tuple(part for piece in pieces for part in piece.parts))
        single = [one.id for piece in pieces for one in self.split(piece)]
        parts, begin = [], 0
        for width in widths(lanes):
            group, begin = single[begin : begin + width], begin + width
            vector = group[0]
            if width > 1:
                vector = self.body.emit(Op.COMPOSITE_CONSTRUCT, self.type(scalar, width), *group)
            parts.append(vector)
        return Value(scalar, lanes, tuple(parts))

    def piece(self, value: Value, begin: int, lanes: int) -> Value:
        """``lanes`` lanes from ``begin`` on."""
        if lanes == value.lanes:
            return value
        if begin % _WIDEST == 0 and lanes % _WIDEST == 0:
            return Value(value.scalar, lanes, value.parts[begin // _WIDEST : (begin + lanes) // _WIDEST])
        return self.join([self.lane(value, begin + i) for i in range(lanes)])

    def broadcast(self, value: Value, lanes: int) -> Value:
        """One number in all lanes."""
        if value.lanes == lanes:
            return value
        vectors = {1: value.id}
        for width in set(widths(lanes)) - {1}:
            operands = [value.id] * width
            vectors[width] = self.body.emit(Op.COMPOSITE_CONSTRUCT, self.type(value.scalar, width), *operands)
        return Value(value.scalar, lanes, tuple(vectors[width] for width in widths(lanes)))

    def bitcast(self, value: Value, scalar: Scalar, lanes: int) -> Value:
        """The same bits as another type, the first lane in the lowest ones.

        Raises:
            ValueError: sizes that differ, or lie below 4 bytes and differ in lanes.
        """
        if value.scalar == scalar and value.lanes == lanes:
            return value
        if value.scalar.bits * value.lanes != scalar.bits * lanes or BOOL in (value.scalar, scalar):
            raise ValueError(f"{value.lanes} x {value.scalar} cannot be read as {lanes} x {scalar}")
        if value.lanes == lanes:
            if value.scalar.is_float == scalar.is_float:  # integers differ in nothing but how they are read
                return Value(scalar, lanes, value.parts)
            return self.map(Op.BITCAST, scalar, value)
        return self._from_words(self._to_words(value), scalar, lanes)

    def _to_words(self, value: Value) -> list[int]:
        """The value as 32-bit words."""
        words = []
        for part, width in zip(value.parts, widths(value.lanes), strict=True):
            if width * value.scalar.size % 4:
                raise ValueError(f"{value.lanes} x {value.scalar} is no whole number of words")
            whole, count = part, width * value.scalar.size // 4
            assert count <= _WIDEST, "vectors of 64-bit numbers are not regrouped"
            if (value.scalar.code, value.scalar.bits) not in (("int", 32), ("uint", 32)):
                whole = self.body.emit(Op.BITCAST, self.type(UINT32, count), part)
            words += [lane.id for lane in self.split(Value(UINT32, count, (whole,)))]
        return words

    def _from_words(self, words: list[int], scalar: Scalar, lanes: int) -> Value:
        parts, begin = [], 0
        for width in widths(lanes):
            count = width * scalar.size // 4
            if count == 0:
                raise ValueError(f"{lanes} x {scalar} is no whole number of words")
            group = self.join([Value(UINT32, 1, (word,)) for word in words[begin : begin + count]])
            begin += count
            same = not scalar.is_float and scalar.bits == UINT32.bits
            parts.append(group.id if same else self.body.emit(Op.BITCAST, self.type(scalar, width), group.id))
        return Value(scalar, lanes, tuple(parts))
