"""A drafter joins the program: the target's entry points feed its memory, ``draft`` and ``accept_N`` make a round.

A round is draft, verify_N, accept_N, commit (Cheng et al. 2026, sec. 3), and the next draft begins where accept ended:
tensors pass from one to the next on the device, and the host reads nothing but which tokens stayed. The drafter's own
module is what is traced; embedding and head are the target's, as its graph has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from dspark_compiler.errors import PassError
from dspark_compiler.graph.program import DecodeHeads, EntryKind, EntryPoint, Program, Role, TensorSpec
from dspark_compiler.graph.remarks import Match
from dspark_compiler.graph.signature import entry_inputs
from dspark_compiler.graph.splice import splice
from dspark_compiler.graph.values import spec_of
from dspark_compiler.models.drafters import Drafter
from dspark_compiler.models.drafters.heads import Heads
from dspark_compiler.passes.base import Pass, PassResult
from dspark_compiler.passes.decode_heads.entries import accept_entry, add_inputs, empty_entry, finish, output_of
from dspark_compiler.passes.decode_heads.rings import RingMemory, RingPlan
from dspark_compiler.passes.decode_heads.target import Shared, Tapped, share, tap, unmark

dspark = torch.ops.dspark

_FEEDING = (EntryKind.PREFILL, EntryKind.DECODE, EntryKind.VERIFY)
_KNOBS = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class AttachDecodeHeads(Pass):
    """``heads`` None drafts by looking the prompt up, which needs no weights; lengths are tokens of a sequence."""

    heads: Heads | None
    slots: int
    batch: int
    verify_width: int
    name: ClassVar[str] = "attach_decode_heads"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply; raises PassError where the target's graph does not have what the drafter reads."""
        before = set(program.entries)
        if not program.states:
            raise PassError(f"{self.name}: the program has no cache; run insert_kv_cache first")
        if self.heads is None:
            program.heads = DecodeHeads("ngram", "prompt lookup", self.verify_width - 1)
        else:
            self._attach(program, self.heads)
        draft = program.entries.get("draft")
        probs = None if draft is None else spec_of(_results(draft)[draft.outputs.index("probs")])
        for verify in [e for e in program.entries.values() if e.kind is EntryKind.VERIFY]:
            program.entries[f"accept_{verify.width}"] = accept_entry(verify, probs)
        for entry in program.entries.values():
            unmark(entry)
        made = [Match(name, "entry point made") for name in program.entries if name not in before]
        return PassResult(program, (*self._fed(program), *made))

    def _fed(self, program: Program) -> list[Match]:
        """The entry points that a drafter with weights reads."""
        if self.heads is None:
            return [Match("program", "drafts by looking the prompt up")]
        what = f"writes the memory of a {self.heads.drafter.config.drafter_type} drafter"
        return [Match(entry.name, what) for entry in program.entries.values() if entry.kind in _FEEDING]

    def _attach(self, program: Program, heads: Heads) -> None:
        drafter = heads.drafter
        config = drafter.config
        plan = RingPlan(self.batch, min(config.context_window, self.slots), self.verify_width)
        program.states |= plan.states(drafter)
        places = _places(program, drafter)
        tensors = {f"heads.{name}": tensor.detach() for name, tensor in _tensors(drafter).items()}
        program.params |= {ref: tensor for ref, tensor in tensors.items() if places[ref] == ref}
        feeding = [entry for entry in program.entries.values() if entry.kind in _FEEDING]
        tapped = {entry.name: tap(entry) for entry in feeding}
        verify = next(entry for entry in feeding if entry.kind is EntryKind.VERIFY)
        shared = share(verify, tapped[verify.name])
        join = _Join(program, drafter, places, shared, plan, self.slots)
        for entry in feeding:
            join.feed(entry, tapped[entry.name])
        program.entries["draft"] = join.draft()
        calibration = heads.calibration
        program.heads = DecodeHeads(
            config.drafter_type,
            heads.target.name,
            config.block_size,
            confidence="confidence" in program.entries["draft"].outputs,
            temperatures=() if calibration is None else calibration.temperatures,
            shifts=() if calibration is None else calibration.shifts,
        )


@dataclass(frozen=True)
class _Join:
    """Traces one drafter into entry points of a program; a sequence has at most ``slots`` tokens.

    ``places`` says of each of the drafter's tensors which param has its value.
    """

    program: Program
    drafter: Drafter
    places: Mapping[str, str]
    shared: Shared
    plan: RingPlan
    slots: int

    def feed(self, entry: EntryPoint, tapped: Tapped) -> None:
        """The entry point writes the drafter's memory of its tokens."""
        layers = self.drafter.config.target_layer_ids
        missing = [layer for layer in layers if layer not in tapped.outputs]
        if missing:
            raise PassError(f"attach_decode_heads: {entry.name}: layer {missing[0]}: its output is not marked")
        inputs = {node.meta["ref"]: node for node in entry.placeholders(Role.INPUT)}
        given = {f"tap.{layer}": tapped.outputs[layer] for layer in layers}
        given |= {"final": tapped.final} if self.drafter.reads_final_hidden else {}
        end = output_of(entry)
        self._run(entry, end, _Remember(self.drafter), given, inputs)

    def draft(self) -> EntryPoint:
        """The entry point that makes a block."""
        config = self.drafter.config
        entry = empty_entry("draft", EntryKind.DRAFT, self.plan.batch, config.block_size)
        inputs = add_inputs(entry, entry_inputs(entry.kind, entry.batch, entry.width, cached=True))
        block = _DraftBlock(self.drafter, self.slots - 1)
        results = self._run(entry, output_of(entry), block, {}, inputs)
        entry.outputs = ("input_ids", "positions", "length", "probs", "confidence")[: len(results)]
        finish(entry, results)
        return entry

    def _run(
        self,
        entry: EntryPoint,
        before: fx.Node,
        module: "_Traced",
        given: Mapping[str, fx.Node],
        inputs: Mapping[str, fx.Node],
    ) -> tuple[fx.Node, ...]:
        rings = self.plan.states(self.drafter)
        nodes = {**given, **inputs}
        for ref, place in {**self.places, **{ref: ref for ref in self.shared.refs}}.items():
            param = self.program.params[place]
            nodes[ref] = entry.add_placeholder(Role.PARAM, place, TensorSpec(tuple(param.shape), param.dtype))
        for ref, spec in rings.items():
            nodes[ref] = entry.add_placeholder(Role.STATE, ref, spec)
        names = list(nodes)

        def run(*values: Tensor) -> Any:
            value = dict(zip(names, values, strict=True))
            memory = RingMemory(
                self.drafter.rings(), {r: value[r] for r in rings}, {r: value[r] for r in inputs}, self.plan.spare
            )
            target = self.shared.bind(value)
            weights = {f"drafter.{ref.removeprefix('heads.')}": value[ref] for ref in self.places}
            return functional_call(module, weights, (value, target, memory))

        try:
            return splice(before, run, list(nodes.values()))
        except (RuntimeError, TypeError, ValueError) as error:
            raise PassError(f"attach_decode_heads: {entry.name}: the drafter cannot be traced: {error}") from error


class _Traced(nn.Module):
    """A method of the drafter as a module's forward, whose weights can be given from outside."""

    def __init__(self, drafter: Drafter) -> None:
        super().__init__()
        self.drafter = drafter


class _Remember(_Traced):
    def forward(self, value: Mapping[str, Tensor], target: Any, memory: RingMemory) -> None:
        """Drafter.remember on an entry point's values."""
        taps = [value[f"tap.{layer}"] for layer in self.drafter.config.target_layer_ids]
        self.drafter.remember(taps, value.get("final"), value["input_ids"], value["positions"], target, memory)


class _DraftBlock(_Traced):
    def __init__(self, drafter: Drafter, last: int) -> None:
        super().__init__(drafter)
        self.last = last

    def forward(self, value: Mapping[str, Tensor], target: Any, memory: RingMemory) -> tuple[Tensor, ...]:
        """Drafter.draft as what verify takes; then what drafts were drawn from, and confidences if there are."""
        knobs = [value[name] for name in _KNOBS]
        anchor, position = value["anchor"], value["position"]

        numbers = [value["uniform"][:, step] for step in range(self.drafter.config.block_size)]

        def sample(step: int, logits: Tensor) -> tuple[Tensor, Tensor]:
            probs = dspark.token_probs(logits[:, None], *knobs).reshape(logits.shape)
            return dspark.draw(probs, numbers[step]), probs

        draft = self.drafter.draft(anchor, position, target, memory, sample)
        ids = torch.cat([anchor[:, None], draft.tokens], dim=1)
        # Drafts behind a sequence's end are not looked at, but their positions must stay within tables of them.
        positions = (position[:, None] + torch.arange(ids.shape[1])).clamp(0, self.last)
        length = value["length"] + 0  # verify and commit read it when accept has made the next one
        found = (ids, positions, length, draft.probs, draft.confidence)
        return tuple(tensor for tensor in found if tensor is not None)


def _results(entry: EntryPoint) -> tuple[fx.Node, ...]:
    results: tuple[fx.Node, ...] = tuple(output_of(entry).args[0])  # type: ignore[arg-type]
    return results


def _places(program: Program, drafter: Drafter) -> dict[str, str]:
    """Where the program has each of a drafter's tensors; the values of buffers, such as frequencies, may be there."""
    buffers = dict(drafter.named_buffers())
    places = {f"heads.{name}": f"heads.{name}" for name in _tensors(drafter)}
    for name, tensor in buffers.items():
        same = (
            ref
            for ref, param in program.params.items()
            if param.dtype == tensor.dtype and param.shape == tensor.shape and torch.equal(param, tensor)
        )
        places[f"heads.{name}"] = next(same, f"heads.{name}")
    return places


def _tensors(drafter: Drafter) -> dict[str, Tensor]:
    return {**dict(drafter.named_parameters()), **dict(drafter.named_buffers())}
