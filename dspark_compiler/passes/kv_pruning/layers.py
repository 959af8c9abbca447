"""The layers of a program that have a KV cache."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from dspark_compiler.graph.cache_ops import ATTENDING
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, TensorSpec
from dspark_compiler.graph.rewrite import bound_args

_SIZED_BY_SLOTS = ("k_cache", "v_cache", "k_scale", "v_scale")


@dataclass(frozen=True)
class CachedLayer:
    """One layer's cache, and what its attention does to q.k.

    ``name`` is the suffix of its states; ``exact``: its slots hold all that its sliding window lets it see.
    """

    name: str
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    slots: int
    scale: float
    window: int
    softcap: float
    sinks: str | None
    exact: bool = False

    def shrunk(self, program: Program, slots: int, *, exact: bool) -> "CachedLayer":
        """The layer with fewer slots; states and their placeholders follow, and a state for positions is added."""
        for letter in _SIZED_BY_SLOTS:
            ref = f"{letter}.{self.name}"
            if ref in program.states:
                spec = program.states[ref]
                _resize(program, ref, TensorSpec((*spec.shape[:2], slots, *spec.shape[3:]), spec.dtype))
        program.states[f"slot_position.{self.name}"] = TensorSpec((self.batch, self.kv_heads, slots), torch.int32)
        return replace(self, slots=slots, exact=exact)

    def attention(self, entry: EntryPoint) -> fx.Node:
        """The layer's attention in an entry point that has one."""
        return next(node for name, node in cached_attention(entry) if name == self.name)


def cached_attention(entry: EntryPoint) -> Iterator[tuple[str, fx.Node]]:
    """Names of layers and the operators that attend to their caches, in order."""
    for node in entry.graph.graph.nodes:
        if node.target in ATTENDING:
            cache: fx.Node = bound_args(node)["k_cache"]
            yield cache.meta["ref"].removeprefix("k_cache."), node


def find_layers(program: Program) -> list[CachedLayer]:
    """The layers in the order in which they run; all entry points have the same."""
    entry = next(entry for entry in program.entries.values() if entry.kind is EntryKind.DECODE)
    return [_layer(program, name, bound_args(node)) for name, node in cached_attention(entry)]


def _layer(program: Program, name: str, args: dict[str, Any]) -> CachedLayer:
    batch, kv_heads, slots, head_dim = program.states[f"k_cache.{name}"].shape
    return CachedLayer(
        name=name,
        batch=batch,
        heads=args["q"].meta["val"].shape[1],
        kv_heads=kv_heads,
        head_dim=head_dim,
        slots=slots,
        scale=args["scale"],
        window=args["window"],
        softcap=args["softcap"],
        sinks=None if args["sinks"] is None else args["sinks"].meta["ref"],
    )


def _resize(program: Program, ref: str, spec: TensorSpec) -> None:
    program.states[ref] = spec
    for entry in program.entries.values():
        node = entry.placeholder(ref)
        if node is not None:
            node.meta["val"] = torch.empty(spec.shape, dtype=spec.dtype, device="meta")
