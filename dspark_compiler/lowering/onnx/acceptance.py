"""Which drafts stay, and the token that follows: block verification, see graph/block_verification.py.

Shapes: B sequences, N tokens a verify takes, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.nodes import shape_of
from dspark_compiler.lowering.onnx.emitter import Emitter, Tensor
from dspark_compiler.lowering.onnx.expression import BOOL, DOUBLE, FLOAT, INT32, INT64, Value, concat
from dspark_compiler.lowering.onnx.rounds import drawn
from dspark_compiler.lowering.onnx.slots import counting


def accept(node: fx.Node, emitter: Emitter) -> tuple[Tensor, ...]:
    """dspark.accept: a tuple of four."""
    given = bound_args(node)
    batch, width, vocab = shape_of(given["probs"])
    tokens, probs, uniform = (emitter.get(given[name]) for name in ("tokens", "probs", "uniform"))
    count = emitter.get(given["count"]).cast(INT64)
    kept = emitter.constant(np.zeros(batch, np.int64))
    weights = probs.slice(1, 0, 1).reshape(batch, vocab)
    if drafts := width - 1:
        q = None if given["draft_probs"] is None else emitter.get(given["draft_probs"]).slice(1, 0, drafts)
        block = _Block(emitter, (batch, drafts, vocab), tokens.slice(1, 1, width), probs, q, count.maximum(0))
        reach = block.reaches()
        kept = block.kept(reach, uniform.slice(1, 0, drafts))
        weights = block.following(reach, kept)
    following = drawn(emitter, weights, uniform.slice(1, width - 1, width).reshape(batch))
    accepted = (count < 0).where(emitter.number(0, INT64), kept + 1)
    position = emitter.get(given["position"]) + accepted
    length = emitter.get(given["length"]) + accepted.cast(INT32)
    return tuple(Tensor(value, (batch,), (batch,)) for value in (accepted.cast(INT32), following, position, length))


@dataclass(frozen=True)
class _Block:
    """Emits what becomes of drafts: ids [B,N-1], p [B,N,V], q [B,N-1,V] or None, and how many count, int64 [B]."""

    emitter: Emitter
    shape: tuple[int, int, int]  # B, N-1, V
    ids: Value
    p: Value
    q: Value | None
    looked: Value

    def reaches(self) -> Value:
        """The numbers r_0..r_{N-1}, [B,N] in float64."""
        batch, drafts, _ = self.shape
        ratio = self._targets()
        if self.q is not None:
            drafted = self.q.op("GatherElements", self.ids.unsqueeze(2), axis=2).cast(DOUBLE)
            # Nothing is drafted that has no probability.
            ratio = (drafted > 0.0).where(ratio / drafted, 1.0)
        ratio = ratio.reshape(batch, drafts)
        found = [self.emitter.constant(np.ones((batch, 1)))]
        for place in range(drafts):
            found.append((found[-1] * ratio.slice(1, place, place + 1)).minimum(1.0))
        return concat(found, 1)

    def kept(self, reach: Value, uniform: Value) -> Value:
        """How many drafts stay, [B]; the vocabulary is looked at only if a number lies where that matters."""
        batch, drafts, _ = self.shape
        places = counting(self.emitter, drafts + 1).unsqueeze(0)
        behind = places.equals(self.looked.unsqueeze(1))
        number = concat([self.emitter.constant(np.zeros((batch, 1))), uniform.cast(DOUBLE)], 1)
        # h_i is at most r_i, and 1 of the anchor.
        possible = (number < reach) & (places <= self.looked.unsqueeze(1))
        sure = possible & (behind | (reach >= 1.0))
        asked = (possible & ~sure).cast(INT32).op("ReduceMax", keepdims=0).cast(BOOL)
        left = self.emitter.branch(
            asked,
            lambda: self._left(reach),
            lambda: self.emitter.constant(np.zeros((batch, drafts + 1))).op("Identity"),
        )
        ends = sure | (possible & (number * (left + 1.0 - reach) < left))
        return (ends.cast(INT64) * places).op("ReduceMax", self.emitter.numbers([1]), keepdims=0)

    def following(self, reach: Value, kept: Value) -> Value:
        """Weights of the token behind those that stay, [B,V]."""
        _, drafts, vocab = self.shape
        p = self.p.op("GatherND", self._at(kept))
        place = self._at(kept.minimum(drafts - 1))
        if self.q is None:
            certain = counting(self.emitter, vocab).unsqueeze(0).equals(self.ids.op("GatherND", place).unsqueeze(1))
            missing = certain.where(0.0, p)  # it has all of q, and p is at most 1
        else:
            scale = reach.op("GatherND", place).cast(FLOAT).unsqueeze(1)
            missing = (scale * p - self.q.op("GatherND", place)).maximum(0.0)
        some = missing.sum(1, keep=True) > 0.0
        return ((kept < self.looked).unsqueeze(1) & some).where(missing, p)

    def _targets(self) -> Value:
        """What the target makes of each draft, [B,N-1,1] in float64."""
        return self._before().op("GatherElements", self.ids.unsqueeze(2), axis=2).cast(DOUBLE)

    def _before(self) -> Value:
        return self.p.slice(1, 0, self.shape[1])

    def _left(self, reach: Value) -> Value:
        """The numbers R_0..R_{N-2}, and 0: [B,N] in float64."""
        batch, drafts, _ = self.shape
        p, scale = self._before(), reach.slice(1, 0, drafts).unsqueeze(2)
        if self.q is None:
            left = scale * (p.cast(DOUBLE).sum(2, keep=True) - self._targets())
        else:
            left = (scale.cast(FLOAT) * p - self.q).maximum(0.0).cast(DOUBLE).sum(2, keep=True)
        return concat([left.reshape(batch, drafts), self.emitter.constant(np.zeros((batch, 1)))], 1)

    def _at(self, place: Value) -> Value:
        """Indices [B,2] of a place in each row."""
        return concat([counting(self.emitter, self.shape[0]).unsqueeze(1), place.unsqueeze(1)], 1)
