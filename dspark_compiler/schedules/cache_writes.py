"""How new keys and values get into the cache: to live slots, to scratch, and from scratch to live slots."""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Buffer, Expr, vector, when, widest_vector

KeyValue = tuple[Buffer, Buffer]

# A few tokens are written faster than other threads are woken.
_MIN_PARALLEL = 5


def append(
    shape: AttentionShape,
    isa: VectorIsa,
    new: KeyValue,
    cache: KeyValue,
    sequence: Buffer,
    length: Buffer,
    count: Buffer,
) -> None:
    """Row r's first count[r] tokens go to slots length[r].. of sequence[r]; what does not fit is dropped."""
    loop = T.parallel if shape.rows * shape.width >= _MIN_PARALLEL else T.serial
    with loop(0, shape.rows * shape.kv_heads) as task:
        row = T.Bind(task // shape.kv_heads)
        head = T.Bind(task % shape.kv_heads)
        with T.serial(0, T.min(count[row], shape.width)) as i:
            _write(shape, isa, new, cache, (row, head, i), sequence[row], length[row] + i)


def commit(shape: AttentionShape, isa: VectorIsa, scratch: KeyValue, cache: KeyValue, control: KeyValue) -> None:
    """Each sequence's first accepted[r] scratch rows go to slots length[r]..; control is (length, accepted)."""
    length, accepted = control
    with T.serial(0, shape.batch) as row, T.serial(0, shape.kv_heads) as head:
        count = T.min(accepted[row], shape.scratch)
        with T.serial(0, count) as i:
            _write(shape, isa, scratch, cache, (row, head, i), row, length[row] + i)


def copy_to_scratch(shape: AttentionShape, isa: VectorIsa, new: KeyValue, scratch: KeyValue) -> None:
    """The tokens of a call become the first rows of scratch."""
    for source, target, dim in zip(new, scratch, (shape.head_dim, shape.value_dim), strict=True):
        lanes = widest_vector(dim, isa.lanes)
        with (
            T.serial(0, shape.rows) as row,
            T.serial(0, shape.kv_heads) as head,
            T.serial(0, shape.width) as i,
            T.serial(0, dim // lanes) as chunk,
            vector(lanes) as d,
        ):
            T.buffer_store(target, source[row, head, i, chunk * lanes + d], [row, head, i, chunk * lanes + d])


def _write(
    shape: AttentionShape,
    isa: VectorIsa,
    source: KeyValue,
    cache: KeyValue,
    at: tuple[Expr, Expr, Expr],
    seq: Expr,
    place: Expr,
) -> None:
    """Puts key and value number ``at`` = (row, head, token) of ``source`` into a live slot, if there is such a slot."""
    slot = T.Bind(place)
    _, head, _ = at
    panel, lane = slot // isa.lanes, slot % isa.lanes
    lanes = widest_vector(shape.value_dim, isa.lanes)
    with when(slot < shape.slots):
        with T.serial(0, shape.head_dim) as d:
            T.buffer_store(cache[0], source[0][*at, d], [seq, head, panel, d, lane])
        with T.serial(0, shape.value_dim // lanes) as chunk, vector(lanes) as d:
            T.buffer_store(cache[1], source[1][*at, chunk * lanes + d], [seq, head, slot, chunk * lanes + d])
