"""A compile from start to end: the one place that knows the order of the stages."""

import dataclasses
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tvm

from dspark_compiler.artifact import Artifact, ArtifactWriter, check_destination
from dspark_compiler.artifact import ModelInfo as ModelFields
from dspark_compiler.backends import Backend, create_backend
from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import InputError
from dspark_compiler.frontend.capture import capture
from dspark_compiler.frontend.source import Source, open_source
from dspark_compiler.graph.program import Program
from dspark_compiler.lowering.layout import LayoutPlan, physical_params, plan_layouts
from dspark_compiler.lowering.manifest import describe
from dspark_compiler.lowering.relax import lower
from dspark_compiler.models import ModelInfo
from dspark_compiler.passes.base import PassReport, run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from dspark_compiler.schedules.rules import default_rules

# Called with a stage's name as it begins, and with steps done and in total where a stage has steps.
Progress = Callable[..., None]

_LONGEST_DEFAULT = 4096  # tokens; a longer context costs memory from the first token on, so it has to be asked for


def compile_model(model: str, config: CompileConfig, *, progress: Progress | None = None) -> Artifact:
    """Compiles ``model`` (folder, hub id or GGUF file) and writes the artifact; the previous one stays until then.

    Raises:
        InputError: the model, an option or the output folder cannot be used.
        UnsupportedModelError: the model cannot be captured; names the module or operator.
        BackendUnavailableError: the target cannot be compiled for here.
        CheckFailedError: the compiled model disagrees with eager.
    """
    stages = _Stages(progress or (lambda *_: None))
    source = open_source(model)
    backend = create_backend(config.target, config.arch)
    info = source.info
    config = settle(config, info)
    output = config.output or Path(f"{source.name}-{config.target}.dspark")
    check_destination(output)

    with stages("load"):
        module = source.load(torch.float32, "eager")
    with stages("capture"):
        program = capture(module, config)
    with stages("rewrite"):
        program, passes = run_passes(default_pipeline(config), program, dump_dir=config.dump_ir)
    with stages("lower"):
        plan = plan_layouts(program, backend.isa, config.dtype)
        lowered = lower(program, plan)
    with stages("schedule"), backend.target:
        scheduled = default_rules(backend.isa)(lowered)
        if config.dump_ir is not None:
            (config.dump_ir / "scheduled.tir.py").write_text(scheduled.script(show_meta=False), encoding="utf-8")
    with ArtifactWriter(output) as writer, TemporaryDirectory(prefix="dspark-") as scratch:
        with stages("build"):
            library = Path(scratch) / "model.so"
            backend.build(scheduled, library)
        with stages("write"):
            _add_files(writer, source, backend, library, Path(scratch))
            writer.add_params(physical_params(program, plan))
            manifest = describe(program, plan, ModelFields(**dataclasses.asdict(info)), backend.spec, config)
            writer.add_json("report.json", _report(model, config, program, plan, passes, stages))
            path = writer.finish(manifest)
    return Artifact.open(path, verify=False)


def settle(config: CompileConfig, info: ModelInfo) -> CompileConfig:
    """The config with the lengths that only the model could tell.

    Raises:
        InputError: more tokens asked for than the model has positions.
    """
    if config.max_seq_len is None:
        return dataclasses.replace(config, max_seq_len=min(info.max_positions, _LONGEST_DEFAULT))
    if config.max_seq_len > info.max_positions:
        raise InputError(
            f"--max-seq-len {config.max_seq_len}: {info.name} has {info.max_positions} positions; ask for at most that"
        )
    return config


class _Stages:
    """Times the stages of a compile and tells the caller of them."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._name = ""

    def __call__(self, name: str) -> "_Stages":
        self._name = name
        return self

    def __enter__(self) -> None:
        self._progress(self._name)
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = round(time.perf_counter() - self._began, 3)


def _add_files(writer: ArtifactWriter, source: Source, backend: Backend, library: Path, scratch: Path) -> None:
    writer.add_file(library, "lib/model.so")
    for path in backend.runtime_libraries():
        writer.add_file(path, f"lib/{path.name}")
    tokenizer = scratch / "tokenizer"
    tokenizer.mkdir()
    for name in source.write_tokenizer(tokenizer):
        writer.add_file(tokenizer / name, name)


def _report(
    model: str,
    config: CompileConfig,
    program: Program,
    plan: LayoutPlan,
    passes: tuple[PassReport, ...],
    stages: _Stages,
) -> dict[str, Any]:
    options = {
        name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(config).items()
    }
    return {
        "source": str(Path(model).resolve()) if Path(model).exists() else model,
        "options": options,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": metadata.version("transformers"),
            "tvm": tvm.__version__,
        },
        "seconds": stages.seconds,
        "passes": [report.to_json() for report in passes],
    }
