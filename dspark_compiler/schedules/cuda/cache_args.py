"""The tensors of a cache as kernels take them, in the operators' order."""

from collections.abc import Sequence

from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm
from dspark_compiler.schedules.cuda.attention_rows import ELEMENTS
from dspark_compiler.schedules.tir import Arg


def cache_args(shape: AttentionShape, dtype: str, form: CacheForm, control: Sequence[Arg]) -> list[Arg]:
    """All of them, ``control`` in its place.

    k_cache [B,G,C,D], v_cache [B,G,C,Dv], [k_scratch, v_scratch [B,G,N,*]], control, [free int32 [b]], [slot_position
    int32 [B,G,C]], [k_scale, v_scale float32 [B,G,C], [k_scratch_scale, v_scratch_scale [B,G,N]]].
    """
    stored, slots = (shape.batch, shape.kv_heads), {"cache": shape.slots}
    if shape.scratch:
        slots["scratch"] = shape.scratch
    kept = form.storage.dtype if form.storage.scaled else dtype
    return [
        *(
            Arg(f"{name}_{place}", (*stored, count, dim), kept)
            for place, count in slots.items()
            for name, dim in (("k", shape.head_dim), ("v", shape.value_dim))
        ),
        *control,
        *([Arg("free", (shape.rows,), "int32")] if form.free else []),
        *([Arg("slot_position", (*stored, shape.slots), "int32")] if form.slot_position else []),
        *(
            Arg(scale_name(name, place), (*stored, count))
            for place, count in slots.items()
            for name in "kv"
            if form.storage.scaled
        ),
    ]


def scale_name(name: str, place: str) -> str:
    """The tensor of the scales of "k" or "v" in the "cache" or in "scratch"."""
    return f"{name}_scale" if place == "cache" else f"{name}_scratch_scale"


def check_heads(shape: AttentionShape) -> None:
    """Whether rows can be copied in whole pieces.

    Raises:
        LoweringError: head sizes that are no multiples of 8.
    """
    if shape.head_dim % ELEMENTS or shape.value_dim % ELEMENTS:
        raise LoweringError(f"--target cuda: head sizes {shape.head_dim}, {shape.value_dim} are no multiples of 8")
