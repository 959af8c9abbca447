"""Attention of a draft block in one launch, from its fused projection to the sum over a ring's places and the block.

The block's tokens are new slots behind the ring's, which every query sees and nobody keeps (attention_step.py).
"""

import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.block_attention import BlockShape
from dspark_compiler.schedules.simt.attention_held import Held
from dspark_compiler.schedules.simt.attention_parts import partial_size
from dspark_compiler.schedules.simt.attention_place import Place
from dspark_compiler.schedules.simt.attention_step import counters, emit_step, is_step, roles_of
from dspark_compiler.schedules.simt.awaited import hands_on
from dspark_compiler.schedules.simt.cache_rows import Problem, Span, Tensors
from dspark_compiler.schedules.simt.eighths import EIGHTHS
from dspark_compiler.schedules.simt.projected_rows import ProjectedRows
from dspark_compiler.schedules.simt.qkv_prologue import Prologue, projection_args
from dspark_compiler.schedules.simt.threads import TEAM
from dspark_compiler.schedules.tir import Arg, Buffer, Expr, kernel, made_once

_STORED = "float32"  # what rings hold


def is_block_step(shape: BlockShape) -> bool:
    """Whether a work group can keep the block's keys and values, each shared out to a team."""
    whole = shape.head_dim % TEAM == 0 and shape.value_dim % TEAM == 0
    return whole and shape.width == shape.fresh and is_step(slots_of(shape), _STORED)


def slots_of(shape: BlockShape) -> AttentionShape:
    """The block's tokens as those of a verify, behind the places that it may see."""
    return AttentionShape(
        shape.batch,
        shape.width,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.value_dim,
        shape.batch,
        shape.places - shape.spare,
        shape.width,
    )


def block_counters(shape: BlockShape) -> int:
    """Numbers in "arrived"."""
    return counters(slots_of(shape))


@made_once
def block_step(
    name: str, shape: BlockShape, scale: float, work: Prologue, *, awaits: bool = False, eighths: bool = False
) -> tuple[tvm.tirx.PrimFunc, tuple[int, ...]]:
    """Kernel from the projection to the output of block attention; and its workspace's shape.

    Arguments: x float32 [B S, H D + G D + G Dv], [q_weight, k_weight float32 [D] with eps], [cos, sin float32
    [B,1,S,D] with rope], k_ring [B,G,W,D], v_ring [B,G,W,Dv], length int32 [B], arrived uint32 [``block_counters``],
    all zero before and after (``awaits``: ``NOTHING``), out float32 [B,S,H,Dv], workspace uint32 (anything in it;
    ``awaits``: ``NOTHING``). ``awaits``: the projection may be yet to come, and "out" is awaited (awaited.py), in
    ``eighths`` (eighths.py) if so.
    """
    problem = Problem(slots_of(shape), Scoring(scale), CacheForm(), _STORED, awaits, causal=False)
    workspace = (partial_size(problem),)
    ring = (shape.batch, shape.kv_heads, shape.places)
    args = [
        *projection_args(problem.shape, work),
        Arg("k_ring", (*ring, shape.head_dim)),
        Arg("v_ring", (*ring, shape.value_dim)),
        Arg("length", (shape.batch,), "int32"),
        Arg("arrived", (block_counters(shape),), "uint32"),
        Arg("out", (shape.batch, shape.width, shape.heads, shape.value_dim), EIGHTHS if eighths else "float32"),
        Arg("workspace", workspace, "uint32"),
    ]

    def body(*buffers: Buffer) -> None:
        tensors = Tensors(dict(zip((arg.name for arg in args), buffers, strict=True)))

        def span_in(row: Expr) -> Span:
            length = T.Bind(tensors["length"][row])
            used = T.Bind(T.min(length, problem.shape.slots))
            return Span(row, used, length, T.Bind(used + shape.width))

        def rows_of(place: Place) -> ProjectedRows:
            return _RingRows(place, work, tensors)

        emit_step(problem, tensors, span_in, rows_of, writes=False)

    function = kernel(name, args, body)
    if awaits:
        function = hands_on(function, args, **roles_of(problem))
    return function, workspace


class _RingRows(ProjectedRows):
    """See ProjectedRows: the others are the last places of a ring, the oldest first."""

    def fetch(self, name: str, held: Held, at: tuple[int, int], slot: Expr, element: Expr, count: int) -> None:
        """See Rows."""
        span, ring = self.place.span, self.tensors[f"{name}_ring"]
        stored = T.max(T.min(slot, span.used - 1), 0)  # what is read of new slots is replaced
        place = T.Bind((span.length - span.used + stored) % int(ring.shape[2]))
        held.copy(at, ring, (span.sequence, self.place.head, place, element), count)
