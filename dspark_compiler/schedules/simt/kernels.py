"""The kernel templates that converters of all targets call, by name."""

from collections.abc import Callable, Mapping

import tvm

from dspark_compiler.schedules.simt import experts, norm, rows
from dspark_compiler.schedules.simt.rope import rope

Template = Callable[..., tvm.tirx.PrimFunc]

_TEMPLATES: tuple[Template, ...] = (
    *(norm.rms_norm, norm.layer_norm, rope),
    *(rows.packed_embedding, rows.row_embedding, rows.quantized_embedding, rows.last_row),
    *(experts.topk, experts.expert_linear),
)


def simt_kernels() -> Mapping[str, Template]:
    """Templates by name."""
    return {template.__name__: template for template in _TEMPLATES}
