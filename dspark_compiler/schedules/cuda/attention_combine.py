"""Adds up the chunks of attention_decode.py: a block for every query row, its warps take every eighth chunk each."""

from functools import reduce

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.attention_decode import decode_plan, partial_sizes
from dspark_compiler.schedules.cuda.attention_rows import Problem, Tensors, span_of
from dspark_compiler.schedules.cuda.attention_warp import HIDDEN, LOG2_E
from dspark_compiler.schedules.cuda.mma import pack_pair
from dspark_compiler.schedules.cuda.threads import WARP, address, barrier, launch, registers, shared
from dspark_compiler.schedules.cuda.warp import load_quad, power_of_two, store_pair, store_word
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
        all_sums, all_maxima, all_totals = shared((WARPS, dim)), shared(WARPS), shared(WARPS)
        span, token = span_of(problem, tensors, row), T.Bind(m // shape.group)
        first = T.Bind(span.first_visible(problem, token) // plan.chunk)
        last = T.Bind((T.min(span.end, span.used + token + 1) + (plan.chunk - 1)) // plan.chunk)
        for i in range(quads * 4):
            T.buffer_store(sums, T.float32(0.0), [i])
        T.buffer_store(maximum, T.float32(HIDDEN), [0])
        T.buffer_store(total, T.float32(0.0), [0])
        with T.serial(0, T.max(last - first - warp + (WARPS - 1), 0) // WARPS) as turn:
            chunk = first + warp + turn * WARPS
            at = T.Bind(((row * shape.kv_heads + head) * plan.chunks + chunk) * problem.rows + m)
            ratio = T.Bind(partial_sizes(problem)[0] + at * 2)
            for quad in range(quads):
                with when((quad * WARP + lane) * 4 < dim):
                    load_quad(given, quad * 4, address(workspace, at * dim + (quad * WARP + lane) * 4))
            peak = T.Bind(T.max(maximum[0], workspace[ratio]))
            old, new = _weight(maximum[0], peak, rate), _weight(workspace[ratio], peak, rate)
            T.buffer_store(maximum, peak, [0])
            T.buffer_store(total, total[0] * old + workspace[ratio + 1] * new, [0])
            for i in range(quads * 4):
                T.buffer_store(sums, sums[i] * old + given[i] * new, [i])
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
            everything = reduce(lambda a, b: a + b, (all_totals[w] * weights[w] for w in range(WARPS)))
            if problem.scoring.sinks:
                everything = everything + _weight(sink, peak, rate)
            everything = T.Bind(everything)
            inverse = T.Bind(T.Select(everything > T.float32(0.0), T.float32(1.0) / everything, T.float32(0.0)))
            low, high = (
                T.Bind(
                    reduce(lambda a, b: a + b, (all_sums[w, thread * 2 + i] * weights[w] for w in range(WARPS)))
                    * inverse
                )
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
