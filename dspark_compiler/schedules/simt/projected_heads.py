"""Heads out of the projection by a whole work group of attention: norm and rotary positions, a team a head.

A team has all of a head: what it awaits goes through no memory before it is done, and all of it is awaited at once,
with what else the work group waits for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.attention_place import Place
from dspark_compiler.schedules.simt.attention_totals import TEAMS
from dspark_compiler.schedules.simt.awaited import Ask, await_numbers
from dspark_compiler.schedules.simt.cache_rows import Tensors
from dspark_compiler.schedules.simt.qkv_prologue import Head, HeadPlace, Prologue
from dspark_compiler.schedules.tir import Expr


@dataclass(frozen=True)
class Task:
    """A head that a team makes: number ``task`` counts the work group's query rows, then the tokens' keys."""

    task: Expr
    is_query: Expr
    is_key: Expr
    token: Expr
    number: Expr  # of the head among all of the projection


def make_heads(
    place: Place, work: Prologue, tensors: Tensors, store: Callable[[Task, Head], None], asks: Sequence[Ask]
) -> None:
    """The queries of a work group and all new keys of its head; a barrier has to follow what is stored.

    ``asks``: what else has to be there.
    """
    shape = place.problem.shape
    for turn in range(-(-(place.count + shape.width) // TEAMS)):
        task = _task(place, turn)
        which = HeadPlace.of(shape, place.row, task.token, task.number)
        head = Head(shape.head_dim, work, tensors, which, T.Bind(place.lane))
        wanted = [*head.asks, *(asks if turn == 0 else ())]
        if place.problem.awaits:
            head.load_factors()
            await_numbers(wanted)
        else:
            for ask in wanted:
                ask.load()
            head.load_factors()
        head.rotate()
        store(task, head)


def _task(place: Place, turn: int) -> Task:
    shape = place.problem.shape
    task = T.Bind(turn * TEAMS + place.team)
    is_query = T.Bind(task < place.count)
    query_token, query_head = place.query(T.min(task, place.count - 1))
    new = T.Bind(T.max(T.min(task - place.count, shape.width - 1), 0))
    token = T.Bind(T.Select(is_query, query_token, new))
    number = T.Bind(T.Select(is_query, query_head, shape.heads + place.head))
    is_key = T.Bind(T.And(task >= place.count, task < place.count + shape.width))
    return Task(task, is_query, is_key, token, number)
