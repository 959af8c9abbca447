"""A drafter's memory as device states: rings that every entry point of the target writes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dspark_compiler.graph.program import TensorSpec
from dspark_compiler.models.drafters import Drafter

dspark = torch.ops.dspark


@dataclass(frozen=True)
class RingPlan:
    """Places of the rings of a batch of sequences.

    Attributes:
        batch: sequences.
        window: confirmed tokens a drafter looks back at.
        spare: further places, for tokens being verified.
    """

    batch: int
    window: int
    spare: int

    def states(self, drafter: Drafter) -> dict[str, TensorSpec]:
        """State name -> shape of each ring of a drafter."""
        states = {}
        for name, ring in drafter.rings().items():
            # A verify must not write over the last confirmed token.
            places = (1 if ring.short else self.window) + self.spare
            states[state_name(name)] = TensorSpec((self.batch, ring.heads, places, ring.size), torch.float32)
        return states


def state_name(ring: str) -> str:
    """The state that holds a ring."""
    return f"ring.{ring}"


@dataclass(frozen=True)
class RingMemory:
    """See models/drafters/base.py, Memory; ``inputs`` are an entry point's length, and sequence and count if it has."""

    rings: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    spare: int

    def write(self, name: str, rows: Tensor) -> None:
        """See Memory.write."""
        places = (self.inputs["length"], self.inputs.get("sequence"), self.inputs.get("count"))
        dspark.write_ring(rows, self.rings[state_name(name)], *places)

    def last(self, name: str) -> Tensor:
        """See Memory.last."""
        row: Tensor = dspark.read_ring(self.rings[state_name(name)], self.inputs["length"], self.inputs.get("sequence"))
        return row

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """See Memory.attend."""
        keys, values = (self.rings[state_name(f"{kind}.{layer}")] for kind in "kv")
        mixed: Tensor = dspark.block_attention(q, k, v, keys, values, self.inputs["length"], self.spare, scale)
        return mixed
