"""The kernel templates that converters of all targets call, by name."""

from collections.abc import Mapping
from functools import partial

from dspark_compiler.schedules.gpu.kernels import Template, gpu_kernels
from dspark_compiler.schedules.simt import experts, norm, rows
from dspark_compiler.schedules.simt.block_attention import block_attention
from dspark_compiler.schedules.simt.compact_slots import compact_slots
from dspark_compiler.schedules.simt.flat import each
from dspark_compiler.schedules.simt.logit_moments import logit_moments
from dspark_compiler.schedules.simt.select_slots import select_slots
from dspark_compiler.schedules.simt.stored import cached
from dspark_compiler.schedules.simt.stream_linear import stream_linear
from dspark_compiler.schedules.simt.tile_linear import tile_linear
from dspark_compiler.schedules.tir import Expr

_PLAIN: tuple[Template, ...] = (
    *(norm.rms_norm, norm.layer_norm, rows.packed_embedding, rows.row_embedding, rows.quantized_embedding),
    *(experts.topk, experts.expert_linear, stream_linear, tile_linear, block_attention, select_slots),
)
_READING_CACHES: tuple[Template, ...] = (logit_moments, compact_slots)


def simt_kernels(dtype: str) -> Mapping[str, Template]:
    """Templates by name; caches that are not quantized hold ``dtype``."""
    common = gpu_kernels(dtype, each=each, turn=_turn, load=partial(cached, dtype=dtype))
    reading = {template.__name__: partial(template, dtype=dtype) for template in _READING_CACHES}
    return common | {template.__name__: template for template in _PLAIN} | reading


def _turn(first: Expr, cos: Expr, second: Expr, sin: Expr) -> Expr:
    return first * cos - second * sin
