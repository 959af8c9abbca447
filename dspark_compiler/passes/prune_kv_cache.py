"""The KV cache keeps a budget of slots: what a policy scores lowest is evicted, between steps, when room is needed.

Each layer's cache shrinks to its budget. Tokens keep their positions with their slots; ``free`` tells every entry
point how many slots are free. A new entry point ``evict`` scores the slots of one sequence, picks those that go, and
moves the others up; ``evict_prompt`` does so while a prompt is read, where another policy does that. Sliding-window
layers keep their window, which changes nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from dspark_compiler.graph.cache_ops import USING_SLOTS
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Pruning, Role, TensorSpec
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.signature import entry_inputs
from dspark_compiler.graph.splice import splice
from dspark_compiler.passes.base import Pass, PassResult
from dspark_compiler.passes.kv_policies import PolicyChoice
from dspark_compiler.passes.kv_policies.base import Policy, SlotView
from dspark_compiler.passes.kv_policies.layer import LayerCache, Rotation
from dspark_compiler.passes.kv_policies.pyramid import pyramid_budgets
from dspark_compiler.passes.kv_policies.window import Window
from dspark_compiler.passes.kv_pruning.budget import KVBudget
from dspark_compiler.passes.kv_pruning.layers import CachedLayer, find_layers
from dspark_compiler.passes.kv_pruning.recording import (
    record_queries,
    record_token_scores,
    ring_ref,
    rope_of,
    score_ref,
)
from dspark_compiler.passes.kv_pruning.rotation import rotation_params

dspark = torch.ops.dspark

_CACHE = ("k_cache", "v_cache", "slot_position", "k_scale", "v_scale")


@dataclass(frozen=True)
class PruneKVCache(Pass):
    """See the module; runs after insert_kv_cache."""

    budget: KVBudget
    choice: PolicyChoice
    name: ClassVar[str] = "prune_kv_cache"
    changes_numerics: ClassVar[bool] = True

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply.

        Raises:
            InputError: a policy needs what the model does not have.
        """
        if program.pruning is not None:
            return PassResult(program, declined=(Declined("program", "evicts slots already"),))
        layers = self._shrink(program)
        shrunk = {layer.name for layer in layers}
        whole = tuple(
            Declined(f"layer {layer.name}", f"keeps its {layer.slots} slots")
            for layer in find_layers(program)
            if layer.name not in shrunk
        )
        if not layers:
            return PassResult(program, declined=(Declined("program", "every layer has a slot for each token"),))
        horizon = max(self.budget.block, *(entry.width for entry in program.entries.values()))
        program.pruning = Pruning(
            self.choice.spelled,
            room=min(layer.slots for layer in layers),
            block=self.budget.block,
            horizon=horizon if any(policy.ring == "all" for policy in self._policies) else None,
        )
        for entry in program.entries.values():
            _give_free(entry, layers)
        for layer in layers:
            if not layer.exact:
                self._record(program, layer, horizon)
        for name, policy in self._evictions.items():
            program.entries[name] = self._evict(program, name, policy, layers)
        made = (Match(name, "entry point made") for name in self._evictions)
        return PassResult(program, (*_shrunk(layers), *made), whole)

    @property
    def _policies(self) -> tuple[Policy, ...]:
        return tuple(self._evictions.values())

    @property
    def _evictions(self) -> dict[str, Policy]:
        """Entry points that evict, and the policies they follow."""
        decode, prompt = self.choice.decode, self.choice.prompt
        return {"evict": decode} if decode == prompt else {"evict": decode, "evict_prompt": prompt}

    def _shrink(self, program: Program) -> list[CachedLayer]:
        """The layers that get fewer slots than a sequence has tokens, with the states made smaller."""
        budget, layers = self.budget, find_layers(program)
        windowed = {
            layer.name: layer.window + budget.chunk
            for layer in layers
            if layer.window and layer.window + budget.chunk <= budget.slots
        }
        scored = [layer.name for layer in layers if layer.name not in windowed]
        # All layers free slots together; those that keep a window must not cost the others a token of their budget.
        spare = budget.chunk if windowed else 0
        if self.choice.pyramid:
            longest = max(layer.slots for layer in layers)
            sizes = pyramid_budgets(budget.slots, len(scored), budget.floor, longest)
        else:
            sizes = (budget.slots,) * len(scored)
        wanted = windowed | {name: size + spare for name, size in zip(scored, sizes, strict=True)}
        return [
            layer.shrunk(program, wanted[layer.name], exact=layer.name in windowed)
            for layer in layers
            if wanted[layer.name] < layer.slots
        ]

    def _record(self, program: Program, layer: CachedLayer, horizon: int) -> None:
        scratch = next((e.width for e in program.entries.values() if e.kind is EntryKind.COMMIT), 0)
        for kind in dict.fromkeys(policy.queries for policy in self._policies if policy.ring):
            wanted = [policy.ring for policy in self._policies if policy.queries == kind]
            places = max(horizon if ring == "all" else ring for ring in wanted)
            record_queries(program, layer, kind, places, scratch)
        for policy in self._policies:
            if policy.keeps != "nothing":
                program.states[score_ref(layer)] = TensorSpec((layer.batch, layer.kv_heads, layer.slots), torch.float32)
            if policy.keeps == "tokens":
                record_token_scores(program, layer, policy, scratch)

    def _evict(self, program: Program, name: str, policy: Policy, layers: list[CachedLayer]) -> EntryPoint:
        """Scores, selects and moves, layer by layer."""
        graph = fx.Graph()
        end = graph.output(())
        end.meta["val"] = ()
        entry = EntryPoint(name, EntryKind.EVICT, 1, self.budget.block, fx.GraphModule({}, graph), ())
        for ref, spec in entry_inputs(entry.kind, 1, entry.width, cached=True, pruned=True).items():
            entry.add_placeholder(Role.INPUT, ref, spec)
        for layer in layers:
            scores = Window() if layer.exact else policy
            operands = self._operands(program, entry, layer, scores)
            splice(_end(entry), self._eviction(layer, scores, list(operands)), list(operands.values()))
        return entry

    def _operands(self, program: Program, entry: EntryPoint, layer: CachedLayer, policy: Policy) -> dict[str, fx.Node]:
        """What freeing a layer's slots works on, by the names of LayerCache, Rotation and the inputs."""
        refs = {field: f"{field}.{layer.name}" for field in _CACHE}
        if policy.ring:
            refs["ring"] = ring_ref(policy.queries, layer)
        if policy.keeps != "nothing" or (not layer.exact and score_ref(layer) in program.states):
            refs["slot_score"] = score_ref(layer)
        operands = {
            field: entry.add_placeholder(Role.STATE, ref, program.states[ref])
            for field, ref in refs.items()
            if ref in program.states
        }
        params = {} if layer.sinks is None else {"sinks": layer.sinks}
        if policy.queries == "plain":
            params |= rotation_params(program, rope_of(layer.attention(_decode(program))))
        for field, ref in params.items():
            tensor = program.params[ref]
            operands[field] = entry.add_placeholder(Role.PARAM, ref, TensorSpec(tuple(tensor.shape), tensor.dtype))
        return operands | {node.meta["ref"]: node for node in entry.placeholders(Role.INPUT)}

    def _eviction(self, layer: CachedLayer, policy: Policy, names: list[str]) -> Any:
        first, last = (0, 0) if layer.exact else (self.budget.first, self.budget.last)
        # What is added up goes on while another policy reads the prompt: slots would keep an earlier sequence's sums.
        adding = [p for p in self._policies if p.keeps == "sums" and p != policy and not layer.exact]
        assert all(p.queries == policy.queries for p in adding), "a layer's eviction sees one ring"

        def run(*values: Tensor) -> None:
            given = dict(zip(names, values, strict=True))
            control = {key: given.pop(key) for key in ("sequence", "length", "free", "need", "pending")}
            need = control.pop("need")
            turn = {key: given.pop(key) for key in ("angle", "cos_ahead", "sin_ahead") if key in given}
            cache = LayerCache(
                **given,
                rope=Rotation(**turn) if turn else None,
                scale=layer.scale,
                window=layer.window,
                softcap=layer.softcap,
            )
            view = SlotView(cache, **control)
            for other in adding:
                other.score(view)
            score = policy.score(view)
            place = (cache.slot_position, control["sequence"])
            source = dspark.select_slots(score, *place, control["length"], control["free"], need, first, last)
            moved = (cache.slot_score, cache.k_scale, cache.v_scale)
            dspark.compact_slots(cache.k_cache, cache.v_cache, cache.slot_position, source, control["sequence"], *moved)

        return run


def _shrunk(layers: list[CachedLayer]) -> list[Match]:
    why = {True: "its window and a chunk", False: "scored by the policy"}
    return [Match(f"layer {layer.name}", f"{layer.slots} slots, {why[layer.exact]}") for layer in layers]


def _give_free(entry: EntryPoint, layers: list[CachedLayer]) -> None:
    """Every operator that finds slots by their number learns how many are free, and where positions are."""
    (spec,) = {node.meta["val"].shape for node in entry.placeholders(Role.INPUT) if node.meta["ref"] == "length"}
    free = entry.add_placeholder(Role.INPUT, "free", TensorSpec(tuple(spec), torch.int32))
    by_name = {layer.name: layer for layer in layers}
    for node in entry.graph.graph.nodes:
        if node.target not in USING_SLOTS:
            continue
        cache = next(n for n in node.all_input_nodes if n.meta.get("ref", "").startswith("k_cache."))
        layer = by_name.get(cache.meta["ref"].removeprefix("k_cache."))
        if layer is None:
            continue
        shape = TensorSpec((layer.batch, layer.kv_heads, layer.slots), torch.int32)
        position = entry.add_placeholder(Role.STATE, f"slot_position.{layer.name}", shape)
        node.kwargs = {**node.kwargs, "free": free, "slot_position": position}


def _decode(program: Program) -> EntryPoint:
    return next(entry for entry in program.entries.values() if entry.kind is EntryKind.DECODE)


def _end(entry: EntryPoint) -> fx.Node:
    return entry.graph.graph.output_node()
