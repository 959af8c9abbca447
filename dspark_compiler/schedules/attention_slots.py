"""What a block of slots has besides keys and values, put side by side: scales, and positions where a window needs them.

Copied block by block, so that the loops over a block read whole vectors whatever the cache's number of slots, and
need not know which slots are live and which are new tokens.
"""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import CacheForm
from dspark_compiler.schedules.cache_writes import Places
from dspark_compiler.schedules.tir import Buffer, Expr, local, vector


class BlockTables:
    """Tables of one block, entry t for its slot number t; None where there is nothing to know."""

    def __init__(self, form: CacheForm, window: int, size: int, lanes: int) -> None:
        scaled = form.storage.scaled
        self.k_scale: Buffer | None = _zeros(size, lanes, "float32") if scaled else None
        self.v_scale: Buffer | None = _zeros(size, lanes, "float32") if scaled else None
        self.position: Buffer | None = _zeros(size, lanes, "int32") if form.slot_position and window else None
        self._size = size

    def load(
        self,
        cache: Places,
        fresh: Places | None,
        at: tuple[Expr, Expr, Expr],
        bounds: tuple[Expr, Expr],
        counts: tuple[Expr, Expr],
    ) -> None:
        """Fills the tables for slots base.. up to ``stop``.

        Args:
            cache: live slots.
            fresh: new tokens that are not in live slots, if any.
            at: sequence of the cache, row of the call, key/value head.
            bounds: (base, stop).
            counts: slots in use, and tokens confirmed, before the call.
        """
        base, stop = bounds
        used, length = counts
        seq, row, group = at
        if self.k_scale is None and self.position is None:
            return
        count = T.Bind(T.min(stop - base, self._size))
        live = count if fresh is None else T.Bind(T.max(T.min(used - base, count), 0))
        tables = (
            (self.k_scale, cache.k_scale, None if fresh is None else fresh.k_scale),
            (self.v_scale, cache.v_scale, None if fresh is None else fresh.v_scale),
            (self.position, cache.position, None),
        )
        for table, old, new in tables:
            if table is None or old is None:
                continue
            with T.serial(0, live) as t:
                T.buffer_store(table, old[seq, group, base + t], [t])
            if fresh is not None:
                with T.serial(0, T.max(count - live, 0)) as t:
                    token = base + live + t - used
                    T.buffer_store(table, length + token if new is None else new[row, group, token], [live + t])


def _zeros(size: int, lanes: int, dtype: str) -> Buffer:
    """Entries past the last slot are read, too, and masked afterwards: they must be numbers."""
    table = local(size, dtype)
    zero = T.int32(0) if dtype == "int32" else T.float32(0.0)
    with T.serial(0, size // lanes) as chunk, vector(lanes) as lane:
        T.buffer_store(table, zero, [chunk * lanes + lane])
    return table
