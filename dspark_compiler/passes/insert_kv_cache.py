"""A cache-free program gets a transactional KV cache: keys and values are kept between calls.

Confirmed tokens (prefill, decode) go straight to live slots; unconfirmed ones (verify) go to scratch, and the new
entry point ``commit`` moves those that were accepted. Nothing here knows the model: the attention operator is all
that is looked at.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dspark_compiler.errors import PassError
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role, TensorSpec
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.rewrite import emit
from dspark_compiler.graph.signature import entry_inputs
from dspark_compiler.graph.values import spec_of
from dspark_compiler.passes.base import Pass, PassResult

dspark = torch.ops.dspark


@dataclass(frozen=True)
class InsertKVCache(Pass):
    """Slots and verify width are tokens a sequence, batch is how many sequences the cache holds."""

    slots: int
    batch: int
    verify_width: int
    name: ClassVar[str] = "insert_kv_cache"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply; raises PassError where an entry point does not fit the cache."""
        if program.states:
            return PassResult(program, declined=(Declined("program", "has its cache already"),))
        for entry in program.entries.values():
            self._check(entry)
        matched = [match for entry in program.entries.values() for match in self._insert(program, entry)]
        if any(entry.kind is EntryKind.VERIFY for entry in program.entries.values()):
            program.entries["commit"] = self._commit(program)
            matched.append(Match("commit", "entry point made"))
        return PassResult(program, tuple(matched))

    def _check(self, entry: EntryPoint) -> None:
        if entry.kind is not EntryKind.PREFILL and entry.batch != self.batch:
            raise PassError(f"{self.name}: {entry.name}: has {entry.batch} rows for {self.batch} sequences")
        if entry.kind is EntryKind.VERIFY and entry.width > self.verify_width:
            raise PassError(f"{self.name}: {entry.name}: {entry.width} tokens, but scratch holds {self.verify_width}")
        if entry.width > self.slots:
            raise PassError(f"{self.name}: {entry.name}: {entry.width} tokens, but a sequence has {self.slots} slots")

    def _insert(self, program: Program, entry: EntryPoint) -> list[Match]:
        inputs = {
            ref: entry.add_placeholder(Role.INPUT, ref, spec)
            for ref, spec in entry_inputs(entry.kind, entry.batch, entry.width, cached=True).items()
        }
        seen: set[int] = set()
        matched = []
        for node in list(entry.graph.graph.nodes):
            if node.target is not dspark.attention.default:
                continue
            q, k, v, layer, *options = node.args
            if layer in seen:
                raise PassError(f"{self.name}: {entry.name}: {node.name}: a second attention of layer {layer}")
            seen.add(layer)
            states = self._states(program, entry, node)
            names = ("length",) if entry.kind is EntryKind.VERIFY else ("sequence", "length", "count")
            target = dspark.scratch_attention if entry.kind is EntryKind.VERIFY else dspark.append_attention
            args = (q, k, v, *states, *(inputs[ref] for ref in names), *options)
            node.replace_all_uses_with(emit(node, target.default, args))
            matched.append(Match(node.name, f"becomes {target} over {len(states)} states", entry.name))
            entry.graph.graph.erase_node(node)
        if not seen:
            raise PassError(f"{self.name}: {entry.name}: has no dspark::attention to give a cache")
        return matched

    def _states(self, program: Program, entry: EntryPoint, node: fx.Node) -> list[fx.Node]:
        """Placeholders of the cache a layer's attention works on, the states made on first sight."""
        _, k, v, layer, *_ = node.args
        rows = {"cache": self.slots, "scratch": self.verify_width}
        kinds = ("cache", "scratch") if entry.kind is EntryKind.VERIFY else ("cache",)
        states = []
        for kind in kinds:
            for letter, tokens in (("k", k), ("v", v)):
                assert isinstance(tokens, fx.Node)
                found = spec_of(tokens)  # [b, G, S, D]
                ref = f"{letter}_{kind}.{layer}"
                spec = TensorSpec((self.batch, found.shape[1], rows[kind], found.shape[3]), found.dtype)
                if program.states.setdefault(ref, spec) != spec:
                    raise PassError(f"{self.name}: {entry.name}: {node.name}: {ref} differs between entry points")
                states.append(entry.add_placeholder(Role.STATE, ref, spec))
        return states

    def _commit(self, program: Program) -> EntryPoint:
        """The entry point that moves accepted tokens from scratch to live slots, layer by layer."""
        graph = fx.Graph()
        end = graph.output(())
        end.meta["val"] = ()
        entry = EntryPoint("commit", EntryKind.COMMIT, self.batch, self.verify_width, fx.GraphModule({}, graph), ())
        inputs = [
            entry.add_placeholder(Role.INPUT, ref, spec)
            for ref, spec in entry_inputs(entry.kind, entry.batch, entry.width, cached=True).items()
        ]
        layers = [ref.removeprefix("k_scratch.") for ref in program.states if ref.startswith("k_scratch.")]
        for layer in layers:
            refs = [f"{letter}_{kind}.{layer}" for kind in ("cache", "scratch") for letter in "kv"]
            states: list[Any] = [entry.add_placeholder(Role.STATE, ref, program.states[ref]) for ref in refs]
            emit(next(iter(reversed(entry.graph.graph.nodes))), dspark.commit_scratch.default, (*states, *inputs))
        return entry
