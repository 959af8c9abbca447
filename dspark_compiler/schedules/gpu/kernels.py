"""The kernel templates that GPUs of all families have in common, by name."""

from collections.abc import Callable
from functools import partial

import tvm

from dspark_compiler.schedules.gpu import ring, rows, slot_reads, slot_rows
from dspark_compiler.schedules.gpu.flat import Each
from dspark_compiler.schedules.gpu.rope import Turn, rope

Template = Callable[..., tvm.tirx.PrimFunc]

_FLAT: tuple[Template, ...] = (
    *(rows.last_row, ring.write_ring, ring.read_ring),
    *(slot_rows.append_queries, slot_rows.commit_queries, slot_rows.write_scratch),
    *(slot_rows.append_slot_scores, slot_rows.commit_slot_scores),
    *(slot_reads.read_state, slot_reads.write_state),
)


def gpu_kernels(dtype: str, *, each: Each, turn: Turn, load: slot_reads.Load) -> dict[str, Template]:
    """Templates as a family of GPUs has them; caches that are not quantized hold ``dtype``."""
    flat = {template.__name__: partial(template, each=each) for template in _FLAT}
    read_rows = partial(slot_reads.read_rows, dtype=dtype, each=each, load=load)
    return flat | {"rope": partial(rope, each=each, turn=turn), "read_keys": read_rows, "read_values": read_rows}
