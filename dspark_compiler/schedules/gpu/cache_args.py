"""The tensors of a cache as kernels take them, in the operators' order."""

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm
from dspark_compiler.schedules.tir import Arg


def cache_args(shape: AttentionShape, dtype: str) -> list[Arg]:
    """Live slots, of ``dtype`` as stored: k_cache [B,G,C,D], v_cache [B,G,C,Dv]."""
    places = (shape.batch, shape.kv_heads, shape.slots)
    return [Arg("k_cache", (*places, shape.head_dim), dtype), Arg("v_cache", (*places, shape.value_dim), dtype)]


def scratch_args(shape: AttentionShape, dtype: str) -> list[Arg]:
    """What a verify writes, k_scratch, v_scratch [B,G,N,*]; nothing where new tokens go to live slots."""
    if not shape.scratch:
        return []
    places = (shape.batch, shape.kv_heads, shape.scratch)
    return [Arg("k_scratch", (*places, shape.head_dim), dtype), Arg("v_scratch", (*places, shape.value_dim), dtype)]


def form_args(shape: AttentionShape, form: CacheForm, rows: int) -> list[Arg]:
    """What a cache has besides keys and values.

    [free int32 [rows]], [slot_position int32 [B,G,C]], [k_scale, v_scale float32 [B,G,C], [those of scratch
    [B,G,N]]].
    """
    places = (shape.batch, shape.kv_heads)
    slots = {"cache": shape.slots} | ({"scratch": shape.scratch} if shape.scratch else {})
    return [
        *([Arg("free", (rows,), "int32")] if form.free else []),
        *([Arg("slot_position", (*places, shape.slots), "int32")] if form.slot_position else []),
        *(
            Arg(scale_name(name, place), (*places, count))
            for place, count in slots.items()
            for name in "kv"
            if form.storage.scaled
        ),
    ]


def scale_name(name: str, place: str) -> str:
    """The tensor of the scales of "k" or "v" in the "cache" or in "scratch"."""
    return f"{name}_scale" if place == "cache" else f"{name}_scratch_scale"
