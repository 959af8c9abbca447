"""Tokens that are drawn one after the other within an entry point: launches that await each other, three a token.

What makes the logits of a token from the one before, a sequential head of small rank, is part of the first.
"""

from typing import Any

import numpy as np
import torch
from torch import fx
from tvm import relax

from dspark_compiler.graph.program import EntryPoint
from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.drawn import Drawn, SequentialLogits
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import Form, LayoutPlan, PhysicalTensor
from dspark_compiler.lowering.nodes import identifier, shape_of
from dspark_compiler.lowering.simt import sampling
from dspark_compiler.lowering.simt.attention import Exchange
from dspark_compiler.schedules.simt.chunk_stats import row_stats
from dspark_compiler.schedules.simt.drawn_token import draw_token, weigh_tokens
from dspark_compiler.schedules.simt.sequential_head import HeadShape, sequential_head
from dspark_compiler.schedules.simt.stream_linear import MOST_ROWS

_TOKEN_PROBS = torch.ops.dspark.token_probs.default
_KNOBS = ("temperature", "top_k", "top_p", "min_p")


def find_heads(entry: EntryPoint, plan: LayoutPlan) -> set[fx.Node]:
    """What sequential heads consist of that the first launch of a draw computes."""
    found: set[fx.Node] = set()
    for node in entry.graph.graph.nodes:
        if node.target is _TOKEN_PROBS and (head := _head(node, plan)):
            found |= {head.embedded, *head.inner}
    return found


def token_probs(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.token_probs(logits, temperature, top_k, top_p, min_p); draws, too, if one draw follows."""
    found = Drawn.of(node)
    if found is None:
        return sampling.token_probs(node, importer, exchange=Exchange.BETWEEN_LAUNCHES)
    (batch, _, vocab), given = shape_of(node), bound_args(node)
    logits, stats, handed_on = _logits(node, importer)
    knobs, how = [importer.env[given[name]] for name in _KNOBS], f"{batch}x{vocab}_{handed_on}"
    weigh = weigh_tokens(f"weigh_tokens_{how}", batch, vocab, awaits=handed_on)
    sums, rules, _ = importer.call_many(weigh, [logits, stats, *knobs], _fresh(weigh, 2 + len(knobs)))
    numbers = shape_of(found.uniform)[1]
    draw = draw_token(f"draw_token_{how}_{numbers}", batch, vocab, numbers, awaits=handed_on)
    args = [logits, stats, sums, rules, *knobs, importer.env[found.uniform], _index(found.column)]
    probs, token, drawn = importer.call_many(draw, args, _fresh(draw, len(args)))
    importer.prepared[found.draw] = (token, drawn)
    return importer.reshape(probs, shape_of(node))


def draw(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.draw(probs, uniform)."""
    made = importer.prepared.get(node)
    return sampling.draw(node, importer) if made is None else made[0]


def _logits(node: fx.Node, importer: EntryImporter) -> tuple[Any, Any, bool]:
    """Logits [B,V] that a distribution is given, what is told of their chunks, and whether they are awaited."""
    head = _head(node, importer.plan)
    if head is not None:
        return *_sequential(node, head, importer), True
    batch, _, vocab = shape_of(node)
    # What linears of few rows hand on.
    awaits = batch <= MOST_ROWS
    kernel = row_stats(f"row_stats_{batch}x{vocab}_{awaits}", batch, vocab, awaits=awaits)
    given = bound_args(node)
    logits, temperature = importer.reshape(importer.env[given["logits"]], (batch, vocab)), given["temperature"]
    (stats,) = _fresh(kernel, 2)
    return logits, importer.call(kernel, [logits, importer.env[temperature]], stats), awaits


def _sequential(node: fx.Node, head: SequentialLogits, importer: EntryImporter) -> tuple[Any, Any]:
    """Logits and stats of one launch."""
    env, shape = importer.env, _shape(head, importer.plan)
    follows, awaits = head.previous in importer.prepared, shape.batch * shape.block <= MOST_ROWS
    previous = importer.prepared[head.previous][1] if follows else env[head.previous]
    sizes = f"{shape.batch}x{shape.block}x{shape.vocab}x{shape.rank}_{shape.first}_{shape.second}_{shape.packed}"
    name = identifier(f"sequential_head_{sizes}_{follows}_{awaits}")
    kernel = sequential_head(name, shape, follows=follows, awaits=awaits)
    base = importer.reshape(env[head.base], (shape.batch * shape.block, shape.vocab))
    args = [previous, env[head.first], env[head.second.weight], base, _index(head.column)]
    args.append(env[bound_args(node)["temperature"]])
    logits, stats, embedded = importer.call_many(kernel, args, _fresh(kernel, len(args)))
    env[head.embedded] = embedded
    return logits, stats


def _head(node: fx.Node, plan: LayoutPlan) -> SequentialLogits | None:
    """The head that a distribution's first launch can compute, if it is drawn from."""
    found = SequentialLogits.of(node)
    if found is None or Drawn.of(node) is None or found.second.format or not plan.is_packed(found.second.weight):
        return None
    if plan.forms.get(found.first.meta.get("ref", ""), Form.CODES) not in (Form.PLAIN, Form.ROWS, Form.PACKED):
        return None
    # What is read of it elsewhere is made by that launch, too.
    early = [user for user in found.embedded.users if user not in found.inner and user < node]
    return None if early or not _shape(found, plan).fits else found


def _shape(head: SequentialLogits, plan: LayoutPlan) -> HeadShape:
    batch, block, vocab = shape_of(head.base)
    first, second = head.first.meta["ref"], head.second.weight.meta["ref"]
    packed = plan.forms.get(first) is Form.PACKED
    rank, stored = shape_of(head.embedded)[-1], (plan.params[first].dtype, plan.params[second].dtype)
    return HeadShape(batch, block, vocab, rank, *stored, packed=packed)


def _fresh(kernel: Any, given: int) -> list[PhysicalTensor]:
    """What a kernel fills, behind so many arguments."""
    types = [parameter.ty for parameter in kernel.params[given:]]
    return [PhysicalTensor(tuple(map(int, type_.shape)), str(type_.dtype.dtype)) for type_ in types]


def _index(number: int) -> Any:
    return relax.const(np.array([number], np.int32))
