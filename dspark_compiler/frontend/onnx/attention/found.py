"""An attention that was recognised, before its mask is proved.

Shapes: b rows, S tokens, H query heads, G key/value heads, D head size.
"""

from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.frontend.onnx.evaluate import Values, evaluate
from dspark_compiler.frontend.onnx.graph import scalar
from dspark_compiler.frontend.onnx.inputs import Inputs


@dataclass(frozen=True)
class Mask:
    """A part of a mask: what is added to scores, or the condition under which a key is kept or hidden."""

    value: ir.Value
    kind: Literal["add", "keep", "hide"]


@dataclass
class Found:
    """q [b,H,S,D], k [b,G,S,D], v [b,G,S,Dv], as ``node`` or the nodes that end with it attend.

    Attributes:
        node: new nodes go in front of it.
        output: what the attention replaces, as [b,H,S,Dv].
        swapped: whether k is [b,G,D,S] instead.
        scale: of the scores.
        softcap: of the scaled scores, 0 for none.
        sinks: learned logits [H], None for none.
        masks: all must let a key through.
        causal: whether the operator itself hides later tokens.
        window: whether it hides tokens that lie further back, 0 for none.
    """

    node: ir.Node
    q: ir.Value
    k: ir.Value
    v: ir.Value
    output: ir.Value
    scale: float
    swapped: bool = False
    softcap: float = 0.0
    sinks: ir.Value | None = None
    masks: list[Mask] = field(default_factory=list)
    causal: bool = False
    window: int = 0


# Extents unlike each other and unlike those of models, so that axes can be told apart.
_BATCH, PROBE_WIDTH = 2, 7
_OTHER_WIDTH, _OTHER_PAST = 11, 5


@dataclass
class Probe:
    """Shapes and known values of a graph for a call of ``batch`` rows of ``PROBE_WIDTH`` tokens and no past.

    ``positions`` is the input that the rewritten graph reads positions from.
    """

    graph: ir.Graph
    inputs: Inputs
    positions: ir.Value
    values: Values = field(default_factory=dict)
    others: Values = field(default_factory=dict)  # for another number of new and past tokens

    @property
    def batch(self) -> int:
        """Rows of the call: two, where the graph takes as many."""
        return self.inputs.batch or _BATCH

    def __getitem__(self, value: ir.Value) -> Tensor:
        """The value, or a meta tensor of its shape where it depends on tokens."""
        return self._known(self.values, value, PROBE_WIDTH, 0)

    def number(self, value: ir.Value | None) -> float | None:
        """The number a value of one element is, however many tokens there are; None if there is no such number."""
        found = scalar(value)
        if found is not None or value is None:
            return found
        known = self[value]
        if known.is_meta or known.numel() != 1:
            return None
        other = self._known(self.others, value, _OTHER_WIDTH, _OTHER_PAST if self.inputs.past else 0)
        return float(known) if not other.is_meta and torch.equal(known, other) else None

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The extents of a value."""
        return tuple(self[value].shape)

    def _known(self, values: Values, value: ir.Value, width: int, past: int) -> Tensor:
        if not values:
            feeds = self.inputs.feeds(self.batch, width, past)
            row = feeds[self.inputs.ids].new_zeros((self.batch, width)).long()
            values.update({**feeds, self.positions: row})
        if value not in values:
            evaluate({}, [value], known=values)
        return values[value]
