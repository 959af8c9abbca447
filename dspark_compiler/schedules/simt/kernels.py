"""The kernel templates that converters of all targets call, by name."""

from collections.abc import Callable, Mapping
from functools import partial

import tvm

from dspark_compiler.schedules.simt import experts, norm, ring, rows, slot_reads, slot_rows
from dspark_compiler.schedules.simt.block_attention import block_attention
from dspark_compiler.schedules.simt.compact_slots import compact_slots
from dspark_compiler.schedules.simt.logit_moments import logit_moments
from dspark_compiler.schedules.simt.rope import rope
from dspark_compiler.schedules.simt.select_slots import select_slots
from dspark_compiler.schedules.simt.stream_linear import stream_linear
from dspark_compiler.schedules.simt.tile_linear import tile_linear

Template = Callable[..., tvm.tirx.PrimFunc]

_PLAIN: tuple[Template, ...] = (
    *(norm.rms_norm, norm.layer_norm, rope),
    *(rows.packed_embedding, rows.row_embedding, rows.quantized_embedding, rows.last_row),
    *(experts.topk, experts.expert_linear, stream_linear, tile_linear),
    *(ring.write_ring, ring.read_ring, block_attention),
    *(slot_rows.append_queries, slot_rows.commit_queries, slot_rows.write_scratch),
    *(slot_rows.append_slot_scores, slot_rows.commit_slot_scores, select_slots),
    *(slot_reads.read_state, slot_reads.write_state),
)
_READING_CACHES: tuple[Template, ...] = (logit_moments, compact_slots)


def simt_kernels(dtype: str) -> Mapping[str, Template]:
    """Templates by name; caches that are not quantized hold ``dtype``."""
    reading = {template.__name__: partial(template, dtype=dtype) for template in _READING_CACHES}
    rows_of = {name: partial(slot_reads.read_rows, dtype=dtype) for name in ("read_keys", "read_values")}
    return {template.__name__: template for template in _PLAIN} | reading | rows_of
