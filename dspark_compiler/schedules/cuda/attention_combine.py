"""Adds up the chunks of attention_decode.py: a block for every query row, its warps take every eighth chunk each."""

from functools import reduce

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.attention_decode import decode_plan, partial_sizes
from dspark_compiler.schedules.cuda.attention_rows import Problem, Tensors, span_of
from dspark_compiler.schedules.cuda.attention_warp import HIDDEN, LOG2_E
from dspark_compiler.schedules.cuda.dependent_launch import await_previous, release_next
from dspark_compiler.schedules.cuda.floats import fused, power_of_two, product
from dspark_compiler.schedules.cuda.memory import load_floats, store_pair, store_word
from dspark_compiler.schedules.cuda.mma import pack_pair
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, launch, registers, shared
from dspark_compiler.schedules.tir import Buffer, Expr, when

WARPS = 8


def combine_chunks(problem: Problem, tensors: Tensors, workspace: Buffer) -> None:
    """Launches the second kernel: out[row, token, head] from the workspace; 0 where a row sees no slot."""
    shape, plan = problem.shape, decode_plan(problem)
    dim, rate = shape.value_dim, T.float32(LOG2_E if problem.scoring.softcap else problem.scoring.scale * LOG2_E)
    quads = -(-dim // (4 * WARP))
    with launch((problem.rows, shape.kv_heads, shape.rows), WARPS * WARP) as (m, head, row, thread):
        warp, lane = T.Bind(thread // WARP), T.Bind(thread % WARP)
        sums, maximum, total, given = registers(quads * 4), registers(1), registers(1), registers(quads * 4)
        ratio = registers(2)  # of a chunk: maximum, total
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
        with T.serial(0, T.max(last - first - warp + (WARPS - 1), 0) // WARPS) as turn:
            chunk = first + warp + turn * WARPS
            at = T.Bind(((row * shape.kv_heads + head) * plan.chunks + chunk) * problem.rows + m)
            load_floats(ratio, 0, address(workspace, partial_sizes(problem)[0] + at * 2), 2)
            for quad in range(quads):
                with when((quad * WARP + lane) * 4 < dim):
                    load_floats(given, quad * 4, address(workspace, at * dim + (quad * WARP + lane) * 4), 4)
            peak = T.Bind(T.max(maximum[0], ratio[0]))
            old, new = _weight(maximum[0], peak, rate), _weight(ratio[0], peak, rate)
            T.buffer_store(maximum, peak, [0])
            T.buffer_store(total, fused(ratio[1], new, product(total[0], old)), [0])
            for i in range(quads * 4):
                T.buffer_store(sums, fused(given[i], new, product(sums[i], old)), [i])
        for i in range(quads * 4):
            d = (i // 4 * WARP + lane) * 4 + i % 4
            with when(d < dim):
                T.buffer_store(all_sums, sums[i], [warp, d])
        with when(lane == 0):
            T.buffer_store(all_maxima, maximum[0], [warp])
            T.buffer_store(all_totals, total[0], [warp])
        barrier()
        with when(thread * 2 < dim):
            peak = T.Bind(reduce(T.max, (all_maxima[w] for w in range(WARPS))))
            if problem.scoring.sinks:
                sink = T.Bind(tensors["sinks"][head * shape.group + m % shape.group] * T.float32(LOG2_E) / rate)
                peak = T.Bind(T.max(peak, sink))
            weights = [_weight(all_maxima[w], peak, rate) for w in range(WARPS)]
            everything = _weight(sink, peak, rate) if problem.scoring.sinks else T.float32(0.0)
            everything = T.Bind(_dot([all_totals[w] for w in range(WARPS)], weights, everything))
            inverse = T.Bind(T.Select(everything > T.float32(0.0), T.float32(1.0) / everything, T.float32(0.0)))
            low, high = (
                T.Bind(_dot([all_sums[w, thread * 2 + i] for w in range(WARPS)], weights, T.float32(0.0)) * inverse)
                for i in range(2)
            )
            target = address(tensors["out"], row, token, head * shape.group + m % shape.group, thread * 2)
            store_out(problem, target, low, high)


def store_out(problem: Problem, target: Expr, low: Expr, high: Expr) -> None:
    """Stores two elements of the output side by side."""
    if problem.out_dtype == "float32":
        store_pair(target, low, high)
    else:
        store_word(target, pack_pair(low, high, problem.out_dtype))


def _weight(maximum: Expr, peak: Expr, rate: Expr) -> Expr:
    """What sums relative to ``maximum`` count relative to ``peak``; 0 for those of nothing."""
    known = T.Select(peak == T.float32(HIDDEN), T.float32(0.0), peak)
    return T.Bind(power_of_two((maximum - known) * rate))


def _dot(values: list[Expr], weights: list[Expr], start: Expr) -> Expr:
    for value, weight in zip(values, weights, strict=True):
        start = fused(value, weight, start)
    return start
