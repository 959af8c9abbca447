"""The kernel templates for a CPU that converters of all targets call, by name."""

from collections.abc import Callable, Mapping
from functools import partial

import tvm

from dspark_compiler.schedules import norm, ring, rows, slot_reads, slot_rows
from dspark_compiler.schedules.accept import accept
from dspark_compiler.schedules.attention_mass import attention_mass
from dspark_compiler.schedules.block_attention import block_attention
from dspark_compiler.schedules.compact_slots import compact_slots
from dspark_compiler.schedules.draw import draw
from dspark_compiler.schedules.expert_linear import expert_linear
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.logit_moments import logit_moments
from dspark_compiler.schedules.rope import rope
from dspark_compiler.schedules.select_slots import select_slots
from dspark_compiler.schedules.token_probs import token_probs
from dspark_compiler.schedules.topk import topk

_SHAPED: tuple[Callable[..., tvm.tirx.PrimFunc], ...] = (
    *(
        norm.rms_norm,
        norm.layer_norm,
        rope,
        rows.packed_embedding,
        rows.quantized_embedding,
        rows.row_embedding,
        rows.last_row,
        expert_linear,
    ),
    *(ring.write_ring, ring.read_ring, block_attention, token_probs, draw, accept),
    *(slot_rows.append_queries, slot_rows.commit_queries, slot_rows.write_scratch),
    *(slot_reads.read_state, slot_reads.write_state, slot_reads.read_keys, slot_reads.read_values),
    *(attention_mass, logit_moments, select_slots, compact_slots),
)
_SCALAR = (topk, slot_rows.append_slot_scores, slot_rows.commit_slot_scores)


def cpu_kernels(isa: VectorIsa) -> Mapping[str, Callable[..., tvm.tirx.PrimFunc]]:
    """Templates by name; those whose loops depend on the vectors are made for ``isa``."""
    shaped = {template.__name__: partial(template, isa=isa) for template in _SHAPED}
    return shaped | {template.__name__: template for template in _SCALAR}
