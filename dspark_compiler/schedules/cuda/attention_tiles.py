"""Attention of many tokens around its products: what rows do not see is hidden, what they got is written out."""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.attention_output import OutputRow, weight_of
from dspark_compiler.schedules.cuda.attention_rows import Problem, SlotRows, Span
from dspark_compiler.schedules.cuda.attention_warp import WarpTile
from dspark_compiler.schedules.gpu.attention_call import Tensors
from dspark_compiler.schedules.tir import Expr, when


def hide_unseen(problem: Problem, span: Span, slots: SlotRows, tile: WarpTile, first_row: Expr, slot: Expr) -> None:
    """Hides the scores of what rows from ``first_row`` on do not see of a stretch of slots, where there is any."""
    window, group, positions = problem.scoring.window, problem.shape.group, problem.form.slot_position
    tokens = [T.Bind((first_row + tile.lane // 4 + 8 * half) // group) for half in range(2 * tile.tiles)]

    def recent(number: Expr, half: int) -> Expr:
        return slots.position(slot + number) > span.length + tokens[half] - window

    needed = slot + (tile.columns * 8 - 1) > T.min(span.used + first_row // group, span.end - 1)
    if window and not positions:
        last = span.used + (first_row + (tile.tiles * 16 - 1)) // group
        needed = T.Or(needed, slot <= last - window)
    with when(needed):
        for half, token in enumerate(tokens):
            own = span.used + token - slot
            low = own + 1 - window if window and not positions else T.int32(0)
            tile.hide_outside(half, low, T.min(own, span.end - 1 - slot))
    if window and positions:
        tile.hide(recent)


def store_rows(
    problem: Problem, tensors: Tensors, place: tuple[Expr, Expr], tile: WarpTile, first_row: Expr, end: Expr
) -> None:
    """Writes a warp's rows from ``first_row`` up to ``end``; ``place`` is the row of the call and key/value head."""
    for half in range(2 * tile.tiles):
        m = T.Bind(first_row + tile.lane // 4 + 8 * half)
        with when(m < end):
            out = OutputRow(problem, tensors, *place, m)
            peak = out.peak(tile.maxima[half])
            weight = weight_of(tile.maxima[half], peak, T.float32(tile.rate))
            inverse = T.Bind(out.inverse(tile.totals[half], weight, peak) * weight)
            for output in range(tile.outputs):
                d = output * 8 + tile.lane % 4 * 2
                at = ((half // 2) * tile.outputs + output) * 4 + half % 2 * 2
                with when(d < problem.shape.value_dim):
                    out.store(d, tile.sums[at] * inverse, tile.sums[at + 1] * inverse)
