"""Attention over cache slots: those of graph/cache_ops.py.

Caches are [B,G,C,D] and [B,G,C,Dv] in the type they are stored in, scratch [B,G,N,*] likewise. New rows are written by
a launch of their own, before; then all is read from where it is stored. Few tokens split the slots into chunks, which a
last launch puts together.
"""

import tvm

from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.simt.attention_parts import chunks_of, partial_size
from dspark_compiler.schedules.simt.attention_teams import attend, combine
from dspark_compiler.schedules.simt.cache_rows import Problem, Tensors, cache_args, form_args, scratch_args, write_new
from dspark_compiler.schedules.simt.quantized_rows import write_new_codes
from dspark_compiler.schedules.simt.threads import TEAM
from dspark_compiler.schedules.tir import Arg, Buffer, kernel, made_once

Workspace = tuple[int, ...]


@made_once
def append_attention(
    name: str, shape: AttentionShape, scoring: Scoring, dtype: str, form: CacheForm
) -> tuple[tvm.tirx.PrimFunc, Workspace]:
    """Kernel that writes new keys and values into live slots and attends to them; and its workspace's shape.

    Arguments: q [b,H,S,D], k, v float32, k_cache, v_cache of ``dtype``, sequence, length, count int32 [b],
    [sinks float32 [H]], [free int32 [b]], [slot_position int32 [B,G,C]], [scales], out float32 [b,S,H,Dv], workspace
    float32 (anything in it).

    Raises:
        LoweringError: a cache of 2^31 elements or more, or head sizes that are no multiples of 8.
    """
    return _attention(name, _problem(shape, scoring, dtype, form), ("sequence", "length", "count"))


@made_once
def scratch_attention(
    name: str, shape: AttentionShape, scoring: Scoring, dtype: str, form: CacheForm
) -> tuple[tvm.tirx.PrimFunc, Workspace]:
    """Kernel that copies new keys and values to scratch and attends to live slots and them; and its workspace's shape.

    Arguments: those of ``append_attention`` with k_scratch, v_scratch after v_cache and only ``length`` for control.
    """
    return _attention(name, _problem(shape, scoring, dtype, form), ("length",))


@made_once
def written_attention(
    name: str, shape: AttentionShape, scoring: Scoring, dtype: str, form: CacheForm
) -> tuple[tvm.tirx.PrimFunc, Workspace]:
    """Either kind of attention where the call's keys and values are stored already (qkv_prologue.py).

    Arguments: as of ``scratch_attention`` if the shape has scratch, else of ``append_attention``, without k and v.
    """
    control = ("length",) if shape.scratch else ("sequence", "length", "count")
    return _attention(name, _problem(shape, scoring, dtype, form), control, writes=False)


def _problem(shape: AttentionShape, scoring: Scoring, dtype: str, form: CacheForm) -> Problem:
    if shape.head_dim % TEAM or shape.value_dim % TEAM:
        raise LoweringError(f"head sizes {shape.head_dim}, {shape.value_dim}: this target takes multiples of 8")
    if shape.batch * shape.kv_heads * shape.slots * max(shape.head_dim, shape.value_dim) >= 1 << 31:
        raise LoweringError("this target's kernels count the elements of a cache in 31 bits; lower --max-seq-len")
    return Problem(shape, scoring, form, dtype)


def _attention(
    name: str, problem: Problem, control: tuple[str, ...], *, writes: bool = True
) -> tuple[tvm.tirx.PrimFunc, Workspace]:
    split = chunks_of(problem) > 1
    workspace = (partial_size(problem) if split else 1,)
    args = [*_args(problem, control, writes=writes), Arg("workspace", workspace)]

    def body(*buffers: Buffer) -> None:
        tensors = Tensors(dict(zip((arg.name for arg in args), buffers, strict=True)))
        if writes:
            (write_new_codes if problem.form.storage.scaled else write_new)(problem, tensors)
        attend(problem, tensors)
        if split:
            combine(problem, tensors)

    return kernel(name, args, body), workspace


def _args(problem: Problem, control: tuple[str, ...], *, writes: bool) -> list[Arg]:
    """The operator's tensors in its order, then out."""
    shape, scoring = problem.shape, problem.scoring
    new = (shape.rows, shape.kv_heads, shape.width)
    return [
        Arg("q", (shape.rows, shape.heads, shape.width, shape.head_dim)),
        *([Arg("k", (*new, shape.head_dim)), Arg("v", (*new, shape.value_dim))] if writes else []),
        *cache_args(shape, problem.dtype),
        *scratch_args(shape, problem.dtype),
        *(Arg(each, (shape.rows,), "int32") for each in control),
        *([Arg("sinks", (shape.heads,))] if scoring.sinks else []),
        *form_args(shape, problem.form, shape.rows),
        Arg("out", (shape.rows, shape.width, shape.heads, shape.value_dim)),
    ]
