"""Sizes of a layer's cache and how kernels that free slots read it."""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import key_cache_shape
from dspark_compiler.schedules.cache_storage import FLOAT32, Storage
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, local, vector


@dataclass(frozen=True)
class CacheShape:
    """Sizes of one layer's cache, and how it keeps keys and values."""

    batch: int  # B
    kv_heads: int  # G
    slots: int  # C
    head_dim: int  # D
    value_dim: int  # Dv
    storage: Storage = FLOAT32

    @property
    def per_slot(self) -> tuple[int, int, int]:
        """Shape of a state with one number a slot."""
        return self.batch, self.kv_heads, self.slots

    def stored(self, dtype: str) -> str:
        """The type of elements where those without scales are of ``dtype``."""
        return self.storage.dtype if self.storage.scaled else dtype

    def panels(self, isa: VectorIsa) -> int:
        """Panels that hold the keys of a head."""
        return -(-self.slots // isa.lanes)

    def keys(self, isa: VectorIsa) -> list[Arg]:
        """The arguments k_cache and, if there is one, k_scale."""
        shape = key_cache_shape(self.batch, self.kv_heads, self.slots, self.head_dim, isa)
        return [Arg("k_cache", shape, self.storage.dtype), *self.scale("k_scale")]

    def values(self) -> list[Arg]:
        """The arguments v_cache and, if there is one, v_scale."""
        return [Arg("v_cache", (*self.per_slot, self.value_dim), self.storage.dtype), *self.scale("v_scale")]

    def scale(self, name: str) -> list[Arg]:
        """The argument of scales, if there is one."""
        return [Arg(name, self.per_slot)] if self.storage.scaled else []


def padded_row(
    source: Buffer, at: tuple[Expr, ...], count: Expr, size: int, isa: VectorIsa, rest: int | float
) -> Buffer:
    """A local copy of source[*at, :count], ``rest`` behind it up to ``size``, a multiple of the vector."""
    row = local(size, str(source.dtype))
    constant = T.int32(rest) if isinstance(rest, int) else T.float32(rest)
    lanes = isa.lanes
    whole = T.Bind(count // lanes)
    with T.serial(0, whole) as chunk, vector(lanes) as lane:
        T.buffer_store(row, source[*at, chunk * lanes + lane], [chunk * lanes + lane])
    with T.serial(0, size // lanes - whole) as chunk, vector(lanes) as lane:
        T.buffer_store(row, constant, [(whole + chunk) * lanes + lane])
    with T.serial(0, count - whole * lanes) as i:
        T.buffer_store(row, source[*at, whole * lanes + i], [whole * lanes + i])
    return row


def store_row(row: Buffer, target: Buffer, at: tuple[Expr, ...], count: int, isa: VectorIsa) -> None:
    """target[*at, :count] = row[:count]."""
    lanes = isa.lanes
    with T.serial(0, count // lanes) as chunk, vector(lanes) as lane:
        T.buffer_store(target, row[chunk * lanes + lane], [*at, chunk * lanes + lane])
    with T.serial(0, count % lanes) as i:
        T.buffer_store(target, row[count // lanes * lanes + i], [*at, count // lanes * lanes + i])
