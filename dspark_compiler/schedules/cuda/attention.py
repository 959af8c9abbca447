"""Attention over cache slots on tensor cores: those of graph/cache_ops.py, and the same on rows already written.

Caches are [B,G,C,D] and [B,G,C,Dv] of the compute dtype, scratch [B,G,N,*] likewise. New rows are written by a launch
of their own, before; then all is read from where it is stored.
"""

import tvm

from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring
from dspark_compiler.schedules.cuda.attention_combine import combine_chunks
from dspark_compiler.schedules.cuda.attention_decode import attend_chunks, partial_sizes
from dspark_compiler.schedules.cuda.attention_prefill import attend_rows
from dspark_compiler.schedules.cuda.attention_rows import ELEMENTS, Problem, Tensors
from dspark_compiler.schedules.cuda.cache_writes import write_new
from dspark_compiler.schedules.tir import Arg, Buffer, kernel

FEW_TOKENS = 32  # of a call whose work is split along the slots; more are split by rows

_PLAIN = CacheForm()
Workspace = tuple[int, ...]


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

    Arguments: q [b,H,S,D], k, v of ``in_dtype``, k_cache, v_cache of ``dtype``, sequence, length, count int32 [b],
    [sinks float32 [H]], [free int32 [b]], [slot_position int32 [B,G,C]], out [b,S,H,Dv] of ``out_dtype`` (``dtype``
    unless given), workspace float32 (anything in it).

    Raises:
        LoweringError: a quantized cache, one of 2^31 elements or more, or head sizes that are no multiples of 8.
    """
    problem = _problem(shape, scoring, dtype, form, out_dtype)
    return _attention(name, problem, in_dtype, ("sequence", "length", "count"), writes=True)


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

    Arguments: those of ``append_attention`` with k_scratch, v_scratch after v_cache and only ``length`` for control.
    """
    problem = _problem(shape, scoring, dtype, form, out_dtype)
    return _attention(name, problem, in_dtype, ("length",), writes=True)


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


def _problem(shape: AttentionShape, scoring: Scoring, dtype: str, form: CacheForm, out_dtype: str | None) -> Problem:
    if form.storage.scaled:
        raise LoweringError(f"--target cuda: no attention over a cache of {form.storage.dtype} yet")
    if shape.head_dim % ELEMENTS or shape.value_dim % ELEMENTS:
        raise LoweringError(f"--target cuda: head sizes {shape.head_dim}, {shape.value_dim} are no multiples of 8")
    if shape.batch * shape.kv_heads * shape.slots * max(shape.head_dim, shape.value_dim) >= 1 << 31:
        raise LoweringError("--target cuda: kernels count the elements of a cache in 31 bits; lower --max-seq-len")
    return Problem(shape, scoring, form, dtype, out_dtype or dtype)


def _attention(
    name: str, problem: Problem, in_dtype: str, control: tuple[str, ...], *, writes: bool, arch: str | None = None
) -> tuple[tvm.tirx.PrimFunc, Workspace]:
    few = problem.shape.width <= FEW_TOKENS
    workspace = (sum(partial_sizes(problem)) if few else 1,)
    args = [*_args(problem, in_dtype, control, writes=writes), Arg("workspace", workspace)]

    def body(*buffers: Buffer) -> None:
        tensors = Tensors(dict(zip((arg.name for arg in args), buffers, strict=True)))
        if writes:
            write_new(problem, tensors)
        if few:
            attend_chunks(problem, tensors, tensors["workspace"])
            combine_chunks(problem, tensors, tensors["workspace"])
        else:
            attend_rows(problem, tensors, arch)

    return kernel(name, args, body), workspace


def _args(problem: Problem, in_dtype: str, control: tuple[str, ...], *, writes: bool) -> list[Arg]:
    """The operator's tensors in its order, then out."""
    shape, form, dtype = problem.shape, problem.form, problem.dtype
    keys, values = shape.head_dim, shape.value_dim
    new, stored = (shape.rows, shape.kv_heads, shape.width), (shape.batch, shape.kv_heads)
    written = [Arg("k", (*new, keys), in_dtype), Arg("v", (*new, values), in_dtype)]
    scratch = [
        Arg("k_scratch", (*stored, shape.scratch, keys), dtype),
        Arg("v_scratch", (*stored, shape.scratch, values), dtype),
    ]
    return [
        Arg("q", (shape.rows, shape.heads, shape.width, keys), in_dtype),
        *(written if writes else []),
        Arg("k_cache", (*stored, shape.slots, keys), dtype),
        Arg("v_cache", (*stored, shape.slots, values), dtype),
        *(scratch if shape.scratch else []),
        *(Arg(each, (shape.rows,), "int32") for each in control),
        *([Arg("sinks", (shape.heads,))] if problem.scoring.sinks else []),
        *([Arg("free", (shape.rows,), "int32")] if form.free else []),
        *([Arg("slot_position", (*stored, shape.slots), "int32")] if form.slot_position else []),
        Arg("out", (shape.rows, shape.width, shape.heads, values), problem.out_dtype),
    ]
