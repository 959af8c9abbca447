"""What the artifact says of the lowered program."""

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
import tvm

from dspark_compiler.artifact import (
    EntrySpec,
    HeadsInfo,
    KVInfo,
    Manifest,
    ModelInfo,
    NamedTensor,
    PruningInfo,
    QuantizationInfo,
    TargetInfo,
    TensorInfo,
)
from dspark_compiler.config import CompileConfig
from dspark_compiler.graph.program import EntryPoint, Program, Role
from dspark_compiler.lowering.destinations import destinations
from dspark_compiler.lowering.layout import LayoutPlan, dtype_name


def describe(
    program: Program,
    plan: LayoutPlan | None,
    model: ModelInfo,
    target: TargetInfo,
    config: CompileConfig,
    quantized: Mapping[str, int],
    lowered: tvm.IRModule | None,
) -> Manifest:
    """The manifest without params and files, which the writer knows; ``config`` is settled.

    Without a ``plan`` and a ``lowered`` module tensors lie as the program has them. ``quantized`` counts weights kept
    as codes by their formats.
    """
    assert config.max_seq_len is not None
    return Manifest(
        compiler_version=metadata.version("dspark-compile"),
        tvm_version=tvm.__version__,
        model=model,
        target=target,
        dtype=config.weight_dtype,
        max_seq_len=config.max_seq_len,
        max_batch=config.max_batch,
        kv=_cache(program, config),
        entry_points={name: _entry(entry, lowered) for name, entry in program.entries.items()},
        heads=None if program.heads is None else HeadsInfo(**dataclasses.asdict(program.heads)),
        quantization=None if config.quantize is None else QuantizationInfo(config.quantize, quantized),
        states=_states(program, plan),
    )


def _cache(program: Program, config: CompileConfig) -> KVInfo:
    assert config.max_seq_len is not None
    if program.pruning is None:
        return KVInfo(slots=config.max_seq_len, dtype=config.cache_dtype)
    pruning = PruningInfo(**dataclasses.asdict(program.pruning))
    return KVInfo(
        slots=min(config.kv_budget or config.max_seq_len, config.max_seq_len), dtype=config.cache_dtype, pruning=pruning
    )


def _states(program: Program, plan: LayoutPlan | None) -> dict[str, TensorInfo]:
    if plan is None:
        return {name: TensorInfo(spec.shape, dtype_name(spec.dtype)) for name, spec in program.states.items()}
    return {name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in plan.states.items()}


def _entry(entry: EntryPoint, lowered: tvm.IRModule | None) -> EntrySpec:
    output = next(node for node in entry.graph.graph.nodes if node.op == "output")
    outputs = [_named(name, node.meta["val"]) for name, node in zip(entry.outputs, output.args[0], strict=True)]
    places = () if lowered is None else destinations(lowered, entry.name)
    return EntrySpec(
        kind=entry.kind.value,
        batch=entry.batch,
        width=entry.width,
        inputs=tuple(_named(node.meta["ref"], node.meta["val"]) for node in entry.placeholders(Role.INPUT)),
        states=tuple(node.meta["ref"] for node in entry.placeholders(Role.STATE)),
        params=tuple(node.meta["ref"] for node in entry.placeholders(Role.PARAM)),
        outputs=tuple(outputs),
        destinations=tuple(outputs[place].name for place in places),
    )


def _named(name: str, value: Any) -> NamedTensor:
    assert isinstance(value, torch.Tensor)
    return NamedTensor(name, tuple(value.shape), dtype_name(value.dtype))
