"""How new keys and values get into the cache: to live slots, to scratch, and from scratch to live slots."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape
from dspark_compiler.schedules.cache_storage import Storage, quantize
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Buffer, Expr, vector, when, widest_vector

# A few tokens are written faster than other threads are woken.
_MIN_PARALLEL = 5


@dataclass(frozen=True)
class Places:
    """Buffers of live slots, of scratch rows, or of new tokens; keys of live slots are in panels."""

    k: Buffer
    v: Buffer
    k_scale: Buffer | None = None
    v_scale: Buffer | None = None
    position: Buffer | None = None


@dataclass(frozen=True)
class Row:
    """One token's key or value as it is stored: an element by its index, and the scale if it has one."""

    element: Callable[[Expr], Expr]
    scale: Expr | None


def used_slots(shape: AttentionShape, length: Buffer, free: Buffer | None, row: Expr) -> Expr:
    """Live slots of a row's sequence; without ``free`` each token has one."""
    return length[row] if free is None else T.min(length[row], shape.slots - free[row])


def append(
    shape: AttentionShape,
    isa: VectorIsa,
    storage: Storage,
    new: Places,
    cache: Places,
    control: tuple[Buffer, Buffer, Buffer, Buffer | None],
) -> None:
    """Row r's first count[r] tokens go to its sequence's next slots; what does not fit is dropped.

    ``control`` is (sequence, length, count, free).
    """
    sequence, length, count, free = control
    loop = T.parallel if shape.rows * shape.width >= _MIN_PARALLEL else T.serial
    with loop(0, shape.rows * shape.kv_heads) as task:
        row = T.Bind(task // shape.kv_heads)
        head = T.Bind(task % shape.kv_heads)
        with T.serial(0, T.min(count[row], shape.width)) as i:
            slot = T.Bind(used_slots(shape, length, free, row) + i)
            with when(slot < shape.slots):
                rows = _new_rows(shape, isa, storage, new, (row, head, i))
                _write(shape, isa, rows, cache, (sequence[row], head, slot), length[row] + i)


def commit(
    shape: AttentionShape,
    isa: VectorIsa,
    scratch: Places,
    cache: Places,
    control: tuple[Buffer, Buffer, Buffer | None],
) -> None:
    """Each sequence's first accepted[r] scratch rows go to its next slots; control is (length, accepted, free)."""
    length, accepted, free = control
    with T.serial(0, shape.batch) as row, T.serial(0, shape.kv_heads) as head:
        count = T.min(accepted[row], shape.scratch)
        with T.serial(0, count) as i:
            slot = T.Bind(used_slots(shape, length, free, row) + i)
            at = (row, head, i)
            with when(slot < shape.slots):
                rows = _stored_row(scratch.k, scratch.k_scale, at), _stored_row(scratch.v, scratch.v_scale, at)
                _write(shape, isa, rows, cache, (row, head, slot), length[row] + i)


def copy_to_scratch(shape: AttentionShape, isa: VectorIsa, storage: Storage, new: Places, scratch: Places) -> None:
    """The tokens of a call become the first rows of scratch."""
    for source, target, scales, dim in (
        (new.k, scratch.k, scratch.k_scale, shape.head_dim),
        (new.v, scratch.v, scratch.v_scale, shape.value_dim),
    ):
        lanes = widest_vector(dim, isa.lanes)
        with T.serial(0, shape.rows) as row, T.serial(0, shape.kv_heads) as head, T.serial(0, shape.width) as i:
            at = (row, head, i)
            stored = _new_row(storage, source, at, dim, isa)
            with T.serial(0, dim // lanes) as chunk, vector(lanes) as d:
                T.buffer_store(target, stored.element(chunk * lanes + d), [*at, chunk * lanes + d])
            if scales is not None:
                T.buffer_store(scales, stored.scale, [*at])


def _new_rows(
    shape: AttentionShape, isa: VectorIsa, storage: Storage, new: Places, at: tuple[Expr, Expr, Expr]
) -> tuple[Row, Row]:
    """Key and value of a new token."""
    return (
        _new_row(storage, new.k, at, shape.head_dim, isa),
        _new_row(storage, new.v, at, shape.value_dim, isa),
    )


def _new_row(storage: Storage, source: Buffer, at: tuple[Expr, ...], dim: int, isa: VectorIsa) -> Row:
    """A new token's key or value, quantized if the cache is."""
    if not storage.scaled:
        return Row(lambda d: source[(*at, d)], None)
    stored, scale = quantize(storage, source, at, dim, isa.lanes)
    return Row(lambda d: stored[d], scale)


def _stored_row(source: Buffer, scales: Buffer | None, at: tuple[Expr, Expr, Expr]) -> Row:
    """A key or value that is in scratch."""
    return Row(lambda d: source[(*at, d)], None if scales is None else scales[at])


def _write(
    shape: AttentionShape,
    isa: VectorIsa,
    rows: tuple[Row, Row],
    cache: Places,
    at: tuple[Expr, Expr, Expr],
    position: Expr,
) -> None:
    """Puts a key and a value into the live slot ``at`` = (sequence, head, slot)."""
    key, value = rows
    seq, head, slot = at
    panel, lane = slot // isa.lanes, slot % isa.lanes
    lanes = widest_vector(shape.value_dim, isa.lanes)
    with T.serial(0, shape.head_dim) as d:
        T.buffer_store(cache.k, key.element(d), [seq, head, panel, d, lane])
    with T.serial(0, shape.value_dim // lanes) as chunk, vector(lanes) as d:
        T.buffer_store(cache.v, value.element(chunk * lanes + d), [*at, chunk * lanes + d])
    for scales, row in ((cache.k_scale, key), (cache.v_scale, value)):
        if scales is not None:
            T.buffer_store(scales, row.scale, [*at])
    if cache.position is not None:
        T.buffer_store(cache.position, position, [*at])
