"""Adds up the chunks of attention_decode.py: a block for every query row, its warps take every eighth chunk each."""

from functools import reduce

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.attention_decode import decode_plan, partial_sizes
from dspark_compiler.schedules.cuda.attention_output import OutputRow, rate_of, weight_of
from dspark_compiler.schedules.cuda.attention_rows import Problem, Tensors, span_of
from dspark_compiler.schedules.cuda.attention_warp import HIDDEN
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.floats import fused, product
from dspark_compiler.schedules.cuda.memory import load_floats
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, launch, registers, shared
from dspark_compiler.schedules.tir import Buffer, Expr, when

WARPS = 8
_TOGETHER = 4  # chunks a warp loads at once


def combine_chunks(problem: Problem, tensors: Tensors, workspace: Buffer) -> None:
    """Launches the second kernel: out[row, token, head] from the workspace; 0 where a row sees no slot."""
    shape, plan = problem.shape, decode_plan(problem)
    dim, rate = shape.value_dim, T.float32(rate_of(problem))
    quads = -(-dim // (4 * WARP))
    with launch((problem.rows, shape.kv_heads, shape.rows), WARPS * WARP) as (m, head, row, thread):
        warp, lane = T.Bind(thread // WARP), T.Bind(thread % WARP)
        sums, maximum, total = registers(quads * 4), registers(1), registers(1)
        given, ratios = registers(_TOGETHER * quads * 4), registers(_TOGETHER * 2)  # of chunks; (maximum, total)
        all_sums, all_maxima, all_totals = shared((WARPS, dim)), shared(WARPS), shared(WARPS)
        await_previous()
        release_next()
        span, token = span_of(problem, tensors, row), T.Bind(m // shape.group)
        size = plan.chunk(span)
        first = T.Bind(span.first_visible(problem, token) // size)
        last = T.Bind((T.min(span.end, span.used + token + 1) + (size - 1)) // size)
        for i in range(quads * 4):
            T.buffer_store(sums, T.float32(0.0), [i])
        T.buffer_store(maximum, T.float32(HIDDEN), [0])
        T.buffer_store(total, T.float32(0.0), [0])
        with T.serial(0, T.max(last - first + (WARPS * _TOGETHER - 1), 0) // (WARPS * _TOGETHER)) as turn:
            for n in range(_TOGETHER):  # loads are under way together
                chunk = T.Bind(first + warp + (turn * _TOGETHER + n) * WARPS)
                at = T.Bind(((row * shape.kv_heads + head) * plan.chunks + chunk) * problem.rows + m)
                T.buffer_store(ratios, T.float32(HIDDEN), [n * 2])
                T.buffer_store(ratios, T.float32(0.0), [n * 2 + 1])
                for i in range(quads * 4):
                    T.buffer_store(given, T.float32(0.0), [n * quads * 4 + i])
                with when(chunk < last):
                    load_floats(ratios, n * 2, address(workspace, partial_sizes(problem)[0] + at * 2), 2)
                    for quad in range(quads):
                        d = (quad * WARP + lane) * 4
                        with when(d < dim):
                            load_floats(given, (n * quads + quad) * 4, address(workspace, at * dim + d), 4)
            for n in range(_TOGETHER):
                peak = T.Bind(T.max(maximum[0], ratios[n * 2]))
                old, new = weight_of(maximum[0], peak, rate), weight_of(ratios[n * 2], peak, rate)
                T.buffer_store(maximum, peak, [0])
                T.buffer_store(total, fused(ratios[n * 2 + 1], new, product(total[0], old)), [0])
                for i in range(quads * 4):
                    T.buffer_store(sums, fused(given[n * quads * 4 + i], new, product(sums[i], old)), [i])
        for i in range(quads * 4):
            d = (i // 4 * WARP + lane) * 4 + i % 4
            with when(d < dim):
                T.buffer_store(all_sums, sums[i], [warp, d])
        with when(lane == 0):
            T.buffer_store(all_maxima, maximum[0], [warp])
            T.buffer_store(all_totals, total[0], [warp])
        barrier()
        with when(thread * 2 < dim):
            out = OutputRow(problem, tensors, row, head, m)
            peak = out.peak(T.Bind(reduce(T.max, (all_maxima[w] for w in range(WARPS)))))
            weights = [weight_of(all_maxima[w], peak, rate) for w in range(WARPS)]
            inverse = out.inverse(_dot([all_totals[w] for w in range(WARPS)], weights), T.float32(1.0), peak)
            low, high = (_dot([all_sums[w, thread * 2 + i] for w in range(WARPS)], weights) for i in range(2))
            out.store(thread * 2, low * inverse, high * inverse)


def _dot(values: list[Expr], weights: list[Expr]) -> Expr:
    total = product(values[0], weights[0])
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = fused(value, weight, total)
    return T.Bind(total)
