"""The tensors of a cache as kernels take them, in the operators' order."""

from collections.abc import Sequence

from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm
from dspark_compiler.schedules.cuda.attention_rows import ELEMENTS
from dspark_compiler.schedules.gpu import cache_args as common
from dspark_compiler.schedules.tir import Arg


def cache_args(shape: AttentionShape, dtype: str, form: CacheForm, control: Sequence[Arg]) -> list[Arg]:
    """All of them, ``control`` in its place.

    k_cache [B,G,C,D], v_cache [B,G,C,Dv], [k_scratch, v_scratch [B,G,N,*]], control, [free int32 [b]], [slot_position
    int32 [B,G,C]], [k_scale, v_scale float32 [B,G,C], [k_scratch_scale, v_scratch_scale [B,G,N]]].
    """
    stored = form.storage.dtype if form.storage.scaled else dtype
    kept = [*common.cache_args(shape, stored), *common.scratch_args(shape, stored)]
    return [*kept, *control, *common.form_args(shape, form, shape.rows)]


def check_heads(shape: AttentionShape) -> None:
    """Whether rows can be copied in whole pieces.

    Raises:
        LoweringError: head sizes that are no multiples of 8.
    """
    if shape.head_dim % ELEMENTS or shape.value_dim % ELEMENTS:
        raise LoweringError(f"--target cuda: head sizes {shape.head_dim}, {shape.value_dim} are no multiples of 8")
