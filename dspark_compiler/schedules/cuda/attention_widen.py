"""Quantized slots made rows of the compute dtype, for attention of many tokens: each takes part in so many products."""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.attention_rows import Problem, span_of, widened_row
from dspark_compiler.schedules.cuda.cache_codes import stored_name
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.memory import load_words
from dspark_compiler.schedules.cuda.memory_reads import written_float
from dspark_compiler.schedules.cuda.octets import OCTET, widen_octet
from dspark_compiler.schedules.cuda.threads import address, launch, registers
from dspark_compiler.schedules.gpu.attention_call import Tensors
from dspark_compiler.schedules.gpu.cache_args import scale_name
from dspark_compiler.schedules.tir import Expr, when

_THREADS, _MOST_BLOCKS = 256, 64  # of a head


def widened_words(problem: Problem) -> int:
    """Float32 that all slots of a call take, keys and values, of two bytes an element."""
    shape = problem.shape
    return shape.rows * shape.kv_heads * problem.slots * (shape.head_dim + shape.value_dim) // 2


def widen_slots(problem: Problem, tensors: Tensors) -> None:
    """Launches the kernel that makes rows of all slots the call's tokens may see, where ``widened_row`` finds them."""
    shape = problem.shape
    blocks = min(_MOST_BLOCKS, -(-problem.slots * (shape.head_dim + shape.value_dim) // (OCTET * _THREADS)))
    with launch((blocks, shape.kv_heads, shape.rows), _THREADS) as (block, head, row, thread):
        await_previous()
        release_next()
        span = span_of(problem, tensors, row)
        for name, dim in (("k", shape.head_dim), ("v", shape.value_dim)):
            octets = dim // OCTET
            with T.serial(0, (span.end * octets + (blocks * _THREADS - 1)) // (blocks * _THREADS)) as turn:
                unit = T.Bind((turn * blocks + block) * _THREADS + thread)
                slot, column = T.Bind(unit // octets), T.Bind(unit % octets * OCTET)

                there, live = (row, head, slot, column), span.used if shape.scratch else span.end
                with when(slot < live):
                    _widen(problem, tensors, (name, "cache"), there, (span.sequence, head, slot))
                if shape.scratch:
                    with when(T.And(slot >= live, slot < span.end)):
                        _widen(problem, tensors, (name, "scratch"), there, (span.sequence, head, slot - live))


def _widen(
    problem: Problem,
    tensors: Tensors,
    names: tuple[str, str],
    there: tuple[Expr, Expr, Expr, Expr],
    here: tuple[Expr, Expr, Expr],
) -> None:
    """One octet of keys or values: ``there`` is row of the call, head, virtual slot and column, ``here`` its place."""
    name, place = names
    *row, column = there
    codes = registers(2, "uint32")
    load_words(codes, address(tensors[f"{name}_{place}"], *here, column))
    scale = T.Bind(written_float(address(tensors[scale_name(name, place)], *here)))
    target = widened_row(problem, tensors["workspace"], name, tuple(row), column)
    widen_octet(stored_name(problem.form.storage), problem.dtype, target, address(codes), scale)
