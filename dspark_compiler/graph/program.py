"""The one intermediate form: entry points (FX graphs of static shape) over one set of parameters and states."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import fx


class Role(StrEnum):
    """What a placeholder of an entry point stands for; kept in ``node.meta["role"]``."""

    INPUT = "input"  # given anew by the caller at each call
    PARAM = "param"  # a weight, shared by all entry points, never written
    STATE = "state"  # lives on the device between calls, written in place


class EntryKind(StrEnum):
    """How the runtime drives an entry point."""

    PREFILL = "prefill"
    DECODE = "decode"
    VERIFY = "verify"
    COMMIT = "commit"
    EVICT = "evict"
    DRAFT = "draft"
    ACCEPT = "accept"


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class EntryPoint:
    """One function of the artifact: ``batch`` sequences of ``width`` tokens each.

    Placeholders carry ``meta["role"]`` (Role), ``meta["ref"]`` (name among inputs, Program.params or
    Program.states) and ``meta["val"]`` (a tensor of the right shape and dtype without data). The graph's
    output is a flat tuple, one tensor for each name in ``outputs``.
    """

    name: str
    kind: EntryKind
    batch: int
    width: int
    graph: fx.GraphModule
    outputs: tuple[str, ...]

    def placeholders(self, role: Role) -> Iterator[fx.Node]:
        """The placeholders of one role, in call order."""
        return (n for n in self.graph.graph.nodes if n.op == "placeholder" and n.meta["role"] is role)

    def placeholder(self, ref: str) -> fx.Node | None:
        """The placeholder standing for ``ref``, if this entry point has one."""
        return next((n for n in self.graph.graph.nodes if n.op == "placeholder" and n.meta["ref"] == ref), None)

    def add_placeholder(self, role: Role, ref: str, spec: TensorSpec) -> fx.Node:
        """The placeholder for ``ref``, made (after the others) if it is not there yet."""
        existing = self.placeholder(ref)
        if existing is not None:
            return existing
        graph = self.graph.graph
        last = None
        for node in graph.nodes:
            if node.op != "placeholder":
                break
            last = node
        point = graph.inserting_after(last) if last is not None else graph.inserting_before(next(iter(graph.nodes)))
        with point:
            node = graph.placeholder(ref.replace(".", "_"))
        node.meta.update(role=role, ref=ref, val=torch.empty(spec.shape, dtype=spec.dtype, device="meta"))
        return node


@dataclass(frozen=True)
class Pruning:
    """What the runtime has to know to call ``evict`` in time; counted in slots or tokens of a sequence.

    Attributes:
        policy: as it was asked for.
        room: slots that every layer has; so many are free before the first token.
        block: slots to be freed at a time while decoding.
        horizon: tokens after which ``evict`` must be called though nothing has to go, to see their queries; None: none.
    """

    policy: str
    room: int
    block: int
    horizon: int | None


@dataclass(frozen=True)
class DecodeHeads:
    """The drafter of a program, as far as the runtime has to know it.

    Attributes:
        type: "dspark", "medusa", "eagle3" or "ngram".
        name: what it was made for, or what it does.
        block_size: tokens it drafts in a round.
        confidence: whether ``draft`` gives confidences.
        temperatures: what their logits are divided by, one a position; empty: not calibrated.
        shifts: what is added then; empty: nothing.
    """

    type: str
    name: str
    block_size: int
    confidence: bool = False
    temperatures: tuple[float, ...] = ()
    shifts: tuple[float, ...] = ()


@dataclass
class Program:
    """Entry points over one set of weights and device states.

    ``params`` maps names to CPU tensors (views of the checkpoint until a pass replaces them); ``states`` are
    buffers that live on the device between calls, zero at load. ``pruning`` is set once slots are evicted, ``heads``
    once a drafter is attached. ``stacked`` says of which former params those that were stacked are made.
    """

    entries: dict[str, EntryPoint]
    params: dict[str, torch.Tensor]
    states: dict[str, TensorSpec] = field(default_factory=dict)
    pruning: Pruning | None = None
    heads: DecodeHeads | None = None
    stacked: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def used_params(self) -> set[str]:
        """Names of parameters some entry point still refers to."""
        return {n.meta["ref"] for e in self.entries.values() for n in e.placeholders(Role.PARAM)}
