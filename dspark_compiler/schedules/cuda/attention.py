"""Attention over cache slots on tensor cores: those of graph/cache_ops.py, and the same on rows already written.

Caches are [B,G,C,D] and [B,G,C,Dv] of the compute dtype or quantized, scratch [B,G,N,*] likewise. New rows are written
by a launch of their own, before; then all is read from where it is stored.
"""

import tvm

from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.cuda.attention_combine import combine_chunks
from dspark_compiler.schedules.cuda.attention_decode import attend_chunks
from dspark_compiler.schedules.cuda.attention_plan import is_split, partial_sizes
from dspark_compiler.schedules.cuda.attention_prefill import attend_rows
from dspark_compiler.schedules.cuda.attention_rows import Problem
from dspark_compiler.schedules.cuda.attention_widen import widen_slots, widened_words
from dspark_compiler.schedules.cuda.cache_args import cache_args, check_heads
from dspark_compiler.schedules.cuda.cache_writes import write_new
from dspark_compiler.schedules.gpu.attention_call import Tensors
from dspark_compiler.schedules.tir import Arg, Buffer, kernel, made_once

_PLAIN = CacheForm()
Workspace = tuple[int, ...]


@made_once
def append_attention(
    name: str,
    shape: AttentionShape,
    scoring: Scoring,
    dtype: str,
    form: CacheForm = _PLAIN,
    *,
    in_dtype: str = "float32",
    out_dtype: str | None = None,
) -> tuple[tvm.tirx.PrimFunc, Workspace]:
    """Kernel that writes new keys and values into live slots and attends to them; and its workspace's shape.

    Arguments: q [b,H,S,D], k, v of ``in_dtype``, k_cache, v_cache of ``dtype`` or quantized, sequence, length, count
    int32 [b], [sinks float32 [H]], [free int32 [b]], [slot_position int32 [B,G,C]], [k_scale, v_scale float32 [B,G,C]],
    out [b,S,H,Dv] of ``out_dtype`` (``dtype`` unless given), workspace float32 (anything in it).

    Raises:
        LoweringError: a cache of 2^31 elements or more, or head sizes that are no multiples of 8.
    """
    problem = _problem(shape, scoring, dtype, form, out_dtype)
    return _attention(name, problem, in_dtype, ("sequence", "length", "count"), writes=True)


@made_once
def scratch_attention(
    name: str,
    shape: AttentionShape,
    scoring: Scoring,
    dtype: str,
    form: CacheForm = _PLAIN,
    *,
    in_dtype: str = "float32",
    out_dtype: str | None = None,
) -> tuple[tvm.tirx.PrimFunc, Workspace]:
    """Kernel that copies new keys and values to scratch and attends to live slots and them; and its workspace's shape.

    Arguments: those of ``append_attention`` with k_scratch, v_scratch after v_cache, only ``length`` for control, and
    [k_scratch_scale, v_scratch_scale] after v_scale.
    """
    problem = _problem(shape, scoring, dtype, form, out_dtype)
    return _attention(name, problem, in_dtype, ("length",), writes=True)


@made_once
def written_attention(
    name: str,
    shape: AttentionShape,
    scoring: Scoring,
    dtype: str,
    form: CacheForm = _PLAIN,
    *,
    in_dtype: str | None = None,
    out_dtype: str | None = None,
    arch: str | None = None,
) -> tuple[tvm.tirx.PrimFunc, Workspace]:
    """Either kind of attention where the call's keys and values are stored already (qkv_prologue.py).

    Arguments: as of ``scratch_attention`` if the shape has scratch, else of ``append_attention``, without k and v.
    ``arch`` is that of ``attend_rows``.
    """
    problem = _problem(shape, scoring, dtype, form, out_dtype)
    control = ("length",) if shape.scratch else ("sequence", "length", "count")
    return _attention(name, problem, in_dtype or dtype, control, writes=False, arch=arch)


def _workspace_shape(problem: Problem) -> Workspace:
    """Shape of the float32 workspace of a call."""
    if is_split(problem):
        return (sum(partial_sizes(problem)),)
    return (widened_words(problem) if problem.form.storage.scaled else 1,)


def _problem(shape: AttentionShape, scoring: Scoring, dtype: str, form: CacheForm, out_dtype: str | None) -> Problem:
    check_heads(shape)
    problem = Problem(shape, scoring, form, dtype, out_dtype or dtype)
    if max(shape.batch, shape.rows) * shape.kv_heads * problem.slots * (shape.head_dim + shape.value_dim) >= 1 << 32:
        raise LoweringError("--target cuda: kernels count the elements of a cache in 31 bits; lower --max-seq-len")
    return problem


def _attention(
    name: str, problem: Problem, in_dtype: str, control: tuple[str, ...], *, writes: bool, arch: str | None = None
) -> tuple[tvm.tirx.PrimFunc, Workspace]:
    workspace = Arg("workspace", _workspace_shape(problem))
    shape = problem.shape
    out = Arg("out", (shape.rows, shape.width, shape.heads, shape.value_dim), problem.out_dtype)
    args = [*_args(problem, in_dtype, control, writes=writes), out, workspace]

    def body(*buffers: Buffer) -> None:
        tensors = Tensors(dict(zip((arg.name for arg in args), buffers, strict=True)))
        if writes:
            write_new(problem, tensors)
        if is_split(problem):
            attend_chunks(problem, tensors, tensors["workspace"])
            combine_chunks(problem, tensors, tensors["workspace"])
        elif problem.form.storage.scaled:
            widen_slots(problem, tensors)
            attend_rows(problem, Tensors(tensors.of | {"widened": tensors["workspace"]}))
        else:
            attend_rows(problem, tensors, arch)

    return kernel(name, args, body), workspace.shape


def _args(problem: Problem, in_dtype: str, control: tuple[str, ...], *, writes: bool) -> list[Arg]:
    """The operator's tensors in its order."""
    shape = problem.shape
    new = (shape.rows, shape.kv_heads, shape.width)
    written = [Arg("k", (*new, shape.head_dim), in_dtype), Arg("v", (*new, shape.value_dim), in_dtype)]
    told = [Arg(each, (shape.rows,), "int32") for each in control]
    told += [Arg("sinks", (shape.heads,))] if problem.scoring.sinks else []
    return [
        Arg("q", (shape.rows, shape.heads, shape.width, shape.head_dim), in_dtype),
        *(written if writes else []),
        *cache_args(shape, problem.dtype, problem.form, told),
    ]
