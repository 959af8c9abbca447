"""Where a call's tokens stand among a sequence's slots, and rows of tokens put into a state.

Shapes: b rows of a call, S tokens a row, G heads, B sequences, C slots or places a sequence, K elements.
"""

from dataclasses import dataclass

import numpy as np
from torch import fx

from dspark_compiler.lowering.nodes import shape_of
from dspark_compiler.lowering.onnx.emitter import Emitter
from dspark_compiler.lowering.onnx.expression import INT32, INT64, Value, concat


def used_slots(emitter: Emitter, length: fx.Node, slots: int, free: fx.Node | None) -> Value:
    """Live slots of each row's sequence, int64 [b]: min(length, C - free)."""
    used = emitter.get(length).cast(INT64)
    return used if free is None else used.minimum(emitter.number(slots, INT64) - emitter.get(free).cast(INT64))


def counting(emitter: Emitter, count: int) -> Value:
    """0, 1, 2, … of a number known now."""
    return emitter.constant(np.arange(count, dtype=np.int64))


@dataclass(frozen=True)
class Rows:
    """Which of a call's tokens are put at which places of a state's sequences.

    Attributes:
        token: int64 [b,S], the tokens, of which padding repeats a real one; None: all, as they come.
        place: int64 [b,S], their places.
        sequence: int64 [b], the sequences.
        some: bool [b], whether a row has any token; None where it surely has.
        size: b and S.
    """

    token: Value | None
    place: Value
    sequence: Value
    some: Value | None
    size: tuple[int, int]


def rows_of(
    emitter: Emitter,
    size: tuple[int, int],
    start: Value,
    places: int,
    *,
    count: fx.Node | None = None,
    sequence: fx.Node | None = None,
    ring: bool = False,
) -> Rows:
    """The first ``count`` of S tokens go to start, start + 1, …; in a ring modulo its number of places.

    Without ``count`` all tokens are real, without ``sequence`` row r is sequence r.
    """
    rows, width = size
    token, some = counting(emitter, width).unsqueeze(0), None
    if count is not None:
        real = emitter.get(count).cast(INT64).unsqueeze(1)
        some = emitter.get(count) > 0
        token = token.minimum(real - 1).maximum(real - places if ring and width > places else 0).maximum(0)
    elif ring and width > places:
        token = token.maximum(width - places)  # of those that share a place the last stays
    place = start.unsqueeze(1) + token
    place = place % places if ring else place.minimum(places - 1)
    chosen = counting(emitter, rows) if sequence is None else emitter.get(sequence).cast(INT64)
    repeats = width > 1 and (count is not None or (ring and width > places))
    return Rows(token.expand(rows, width) if repeats else None, place, chosen, some, size)


def put(emitter: Emitter, state: fx.Node, values: Value, rows: Rows) -> None:
    """Puts values [b,S,G,…] of tokens into a state [B,G,C,…]; rows without tokens leave it as it is."""
    heads = shape_of(state)[1]
    indices = _indices(emitter, rows, heads)
    if rows.token is not None:
        values = values.op("GatherND", rows.token.unsqueeze(2), batch_dims=1)
    before = emitter.get(state)
    if rows.some is not None:
        some = rows.some.unsqueeze(*range(1, len(shape_of(state))))
        values = some.where(values, gathered(before, indices))
    emitter.write(state, before.op("ScatterND", indices, values))


def gathered(value: Value, indices: Value, batch_dims: int = 0) -> Value:
    """GatherND; CUDA has it for integers of 64 bits only."""
    wide = value.cast(INT64) if value.dtype == INT32 else value
    return wide.op("GatherND", indices, batch_dims=batch_dims).cast(value.dtype)


def _indices(emitter: Emitter, rows: Rows, heads: int) -> Value:
    """Sequence, head and place of each token and head, int64 [b,S,G,3]."""
    count, width = rows.size
    shape = (count, width, heads, 1)
    columns = (
        rows.sequence.unsqueeze(1, 2, 3),
        counting(emitter, heads).unsqueeze(0, 1, 3),
        rows.place.unsqueeze(2, 3),
    )
    return concat([column.expand(*shape) for column in columns], 3)
