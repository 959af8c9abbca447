"""Writes artifacts without their weights: library and manifest. Needs the compiler, no GPU, and little memory."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.shapes.models import hollow_heads, hollow_model, shape_config
from dspark_compiler.artifact import ArtifactWriter, ModelInfo, TensorInfo
from dspark_compiler.backends import create_backend
from dspark_compiler.config import CompileConfig
from dspark_compiler.frontend.capture import capture
from dspark_compiler.graph.program import Program
from dspark_compiler.lowering.layout import plan_layouts, quantized_weights
from dspark_compiler.lowering.manifest import describe
from dspark_compiler.lowering.relax import lower
from dspark_compiler.machine.kernel_bench import measured_as
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from dspark_compiler.schedules.database import Records


def build(shape: str, output: Path, config: CompileConfig, *, drafter: bool, layers: int | None = None) -> None:
    """Compiles the shape, with DeepSpec's drafter if asked for; ``config`` names all lengths."""
    began = time.perf_counter()

    def say(what: str) -> None:
        click.echo(f"{what} after {time.perf_counter() - began:.0f} s")

    sizes = shape_config(shape, layers)
    heads = hollow_heads(shape, sizes) if drafter else None
    program = capture(hollow_model(sizes), config)
    _hollow(program)
    program, _ = run_passes(default_pipeline(config, heads), program)
    _settle_scales(program)
    backend = create_backend(config.target, config.arch)
    plan = plan_layouts(program, backend.layouts(config.weight_dtype), config.weight_dtype)
    records = Records.standard(measured_as(backend))
    lowered = lower(program, plan, records)
    say("lowered")
    scheduled = backend.schedule(lowered, records)
    say("scheduled")
    with ArtifactWriter(output) as writer, tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch) / "model.so"
        backend.build(scheduled, library)
        for path in (library, *backend.runtime_libraries()):
            writer.add_file(path, f"lib/{path.name}")
        writer.leave_out_params({name: TensorInfo(p.shape, p.dtype) for name, p in plan.params.items()})
        info = ModelInfo(
            name=shape,
            architecture="Qwen3ForCausalLM",
            model_type="qwen3",
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.hidden_size,
            num_layers=sizes.num_hidden_layers,
            max_positions=sizes.max_position_embeddings,
            bos_token_id=None,
            eos_token_ids=(),
        )
        options = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(config).items()}
        writer.add_json("report.json", {"options": options})
        writer.finish(describe(program, plan, info, backend.spec, config, quantized_weights(program), lowered))
    say(f"{output}: {shape}")


def _hollow(program: Program) -> None:
    """Matrices keep their shapes alone; the few numbers of vectors stay."""
    for name, tensor in program.params.items():
        if tensor.stride()[-1:] == (0,):
            program.params[name] = tensor.to("meta") if tensor.ndim > 1 else tensor.contiguous()


def _settle_scales(program: Program) -> None:
    """Scales decide by their numbers whether two bytes hold them: those of groups do, those of rows do not."""
    for name, tensor in program.params.items():
        if tensor.is_meta and name.endswith(".scales"):
            value = 1.0 if tensor.shape[1] > 1 else 1 / 3
            program.params[name] = torch.full(tensor.shape, value, dtype=tensor.dtype)


def config_for(drafter: bool, target: str, **options: Any) -> CompileConfig:
    """A config for these shapes on a GPU; verifies are of 8 tokens, with a drafter also of 4."""
    return CompileConfig(target=target, heads=Path("drafter") if drafter else None, **options)
