"""A compile from start to end: the one place that knows the order of the stages."""

import dataclasses
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tvm

from dspark_compiler.artifact import Artifact, ArtifactWriter, check_destination
from dspark_compiler.artifact import ModelInfo as ModelFields
from dspark_compiler.backends import create_backend
from dspark_compiler.backends.base import Backend
from dspark_compiler.backends.onnxruntime import OnnxRuntimeTarget
from dspark_compiler.compare.calibration import quantization_source
from dspark_compiler.compare.check import check
from dspark_compiler.compare.gate import Gate, Trial, candidate_budgets
from dspark_compiler.compare.quality import QualityReport, measure_quality
from dspark_compiler.compare.reference import reference_of
from dspark_compiler.config import NGRAM, CompileConfig
from dspark_compiler.errors import InputError
from dspark_compiler.frontend.fingerprint import tokenizer_sha256
from dspark_compiler.frontend.loaded import LoadedModel
from dspark_compiler.frontend.positions import looks_up_positions
from dspark_compiler.frontend.source import Source, open_source
from dspark_compiler.graph.history import History
from dspark_compiler.graph.program import Program
from dspark_compiler.lowering.layout import LayoutPlan, physical_params, plan_layouts, quantized_weights
from dspark_compiler.lowering.manifest import describe
from dspark_compiler.lowering.onnx.models import plain_params, prepare, write_models
from dspark_compiler.lowering.relax import lower
from dspark_compiler.machine.kernel_bench import measured_as, open_bench
from dspark_compiler.models import ModelInfo
from dspark_compiler.models.drafters.checkpoint import check_fits, read_heads
from dspark_compiler.models.drafters.heads import Heads
from dspark_compiler.passes.base import PassReport, run_passes
from dspark_compiler.passes.kv_policies import DEFAULT_POLICY, choose_policy
from dspark_compiler.passes.kv_pruning.budget import KVBudget
from dspark_compiler.passes.pipeline import default_pipeline
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.step_times import measure as measure_steps
from dspark_compiler.schedules.apply import export_records
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.tune import TuningStep
from dspark_compiler.viewer.record import RECORD, Record, pack

# Called with a stage's name as it begins, and with steps done, in total and how they go where a stage has steps.
Progress = Callable[..., None]

_LONGEST_DEFAULT = 4096  # tokens; a longer context costs memory from the first token on, so it has to be asked for


def compile_model(model: str, config: CompileConfig, *, progress: Progress | None = None) -> Artifact:
    """Compiles ``model`` (folder, hub id, GGUF or ONNX file) to an artifact; the previous one stays until then.

    With ``max_quality_loss`` it compiles and measures caches of several sizes first, and keeps the smallest that holds.

    Raises:
        InputError: the model, an option or the output folder cannot be used.
        UnsupportedModelError: the model cannot be captured; names the module or operator.
        BackendUnavailableError: the target cannot be compiled for here.
        CheckFailedError: the compiled model disagrees with eager, or no cache holds the quality asked for.
    """
    for policy in _policies(config):
        choose_policy(policy, config.kv_weights)  # a wrong name is told before anything is loaded
    if config.max_quality_loss is None:
        return _compile(model, config, progress, {})
    chosen, found = _find_cache(model, config, progress)
    config = dataclasses.replace(config, kv_policy=chosen.policy, kv_budget=chosen.budget)
    return _compile(model, config, progress, {"quality": found})


def _find_cache(model: str, config: CompileConfig, progress: Progress | None) -> tuple[Trial, dict[str, Any]]:
    """The smallest cache that loses no more than allowed, and what to report of the search."""
    target = OnnxRuntimeTarget() if config.target == "onnxruntime" else _backend(config)
    if not target.runs_here():
        raise InputError(f"--max-quality-loss measures on this machine, which cannot run --arch {config.arch}")
    assert config.max_quality_loss is not None
    whole = dataclasses.replace(
        config,
        kv_budget=None,
        kv_policy=None,
        kv_weights=None,
        max_quality_loss=None,
        heads=None,  # quality is the model's own, whatever is drafted
        tune_trials=0,
        check=False,
    )

    def measure(config: CompileConfig, unpruned: QualityReport | None) -> QualityReport:
        with TemporaryDirectory(prefix="dspark-gate-") as folder:
            artifact = _compile(model, dataclasses.replace(config, output=Path(folder) / "trial"), progress, {})
            return measure_quality(artifact, unpruned=unpruned, progress=progress or (lambda *_: None))

    def trial(policy: str, budget: int) -> QualityReport:
        pruned = dataclasses.replace(whole, kv_policy=policy, kv_budget=budget, kv_weights=config.kv_weights)
        return measure(pruned, unpruned)

    unpruned = measure(whole, None)
    budgets = candidate_budgets(unpruned.length) if config.kv_budget is None else (config.kv_budget,)
    if budgets[0] >= unpruned.length:
        raise InputError(
            f"--kv-budget {budgets[0]}: the quality is measured on documents of {unpruned.length} tokens; "
            "ask for fewer slots than that, or leave out --max-quality-loss"
        )
    gate = Gate(config.max_quality_loss, unpruned, trial)
    chosen = gate.choose(_policies(config), budgets)
    return chosen, gate.to_json(chosen)


def _policies(config: CompileConfig) -> tuple[str, ...]:
    """The policies asked for: one, or several to choose from."""
    return tuple((config.kv_policy or DEFAULT_POLICY).split(","))


def _compile(model: str, config: CompileConfig, progress: Progress | None, remarks: dict[str, Any]) -> Artifact:
    """One compile; ``remarks`` go to the report."""
    stages = _Stages(progress)
    target = OnnxRuntimeTarget() if config.target == "onnxruntime" else _backend(config)
    source = open_source(model)
    heads = _open_heads(config, source)
    config = settle(config, source.info, heads)
    output = config.output or Path(f"{source.name}-{config.target}.dspark")
    check_destination(output)

    rewritten = _rewrite(source, config, heads, stages)
    program, quantized = rewritten.program, quantized_weights(rewritten.program)
    with ArtifactWriter(output) as writer:
        if isinstance(target, OnnxRuntimeTarget):
            plan, lowered = None, None
            _add_models(writer, program, config, stages)
        else:
            plan, lowered = _add_library(writer, program, target, config, stages)
        _add_tokenizer(writer, source)
        fields = ModelFields(**dataclasses.asdict(source.info))
        manifest = describe(program, plan, fields, target.spec, config, quantized, lowered)
        report = _report(model, config, rewritten, stages) | remarks
        if manifest.heads is not None and target.runs_here():
            with stages("time"):
                times = measure_steps(Executor(writer.preview(manifest)))
                manifest = dataclasses.replace(manifest, heads=dataclasses.replace(manifest.heads, times=times))
        if config.check and not target.runs_here():
            report["check"] = f"skipped: this machine cannot run {target.spec.arch}"
            stages.say("check skipped, this machine cannot run the artifact")
        elif config.check:
            with stages("check"):
                found = check(writer.preview(manifest), reference_of(rewritten.model), progress=stages.step)
                report["check"] = found.to_json()
        writer.add_json("report.json", report)
        writer.add_bytes(RECORD, pack(rewritten.history.to_json()))
        with stages("finish"):
            path = writer.finish(manifest)
    return Artifact.open(path, verify=False, runnable=False)


def _add_library(
    writer: ArtifactWriter, program: Program, backend: Backend, config: CompileConfig, stages: "_Stages"
) -> tuple[LayoutPlan, tvm.IRModule]:
    """Compiles a program and adds library, weights and records; returns how tensors lie, and the lowered module."""
    records = Records.standard(measured_as(backend))
    with stages("lower"):
        plan = plan_layouts(program, backend.layouts(config.weight_dtype), config.weight_dtype)
        lowered = lower(program, plan, records)
    if config.tune_trials:
        with stages("tune"):
            _tune(lowered, backend, records, config.tune_trials, stages)
            lowered = lower(program, plan, records)
    with stages("schedule"):
        scheduled = backend.schedule(lowered, records)
        _dump(scheduled, config.dump_ir)
    with TemporaryDirectory(prefix="dspark-") as name:
        library = Path(name) / "model.so"
        with stages("build"):
            backend.build(scheduled, library)
        with stages("write"):
            for path in (library, *backend.runtime_libraries()):
                writer.add_file(path, f"lib/{path.name}")
            export_records(lowered, records, backend.linears, writer.folder / "tuning")
            writer.add_params(physical_params(program, plan), bfloat16=plan.layouts.weight_dtype("bfloat16"))
    return plan, lowered


def _add_models(writer: ArtifactWriter, program: Program, config: CompileConfig, stages: "_Stages") -> None:
    """Adds a program's weights and the ONNX models over them."""
    with stages("lower"):
        prepare(program, config.weight_dtype)
    with stages("write"):
        writer.add_params(plain_params(program))
        write_models(program, writer.folder, writer.param_places())


def record_passes(model: str, config: CompileConfig, *, progress: Progress | None = None) -> tuple[str, Record]:
    """Rewrites a model as a compile would, and compiles nothing: its name, and the record of all passes.

    Raises what ``compile_model`` raises.
    """
    source = open_source(model)
    heads = _open_heads(config, source)
    config = settle(config, source.info, heads)
    return source.name, _rewrite(source, config, heads, _Stages(progress)).history.to_json()


def tune_model(model: str, config: CompileConfig, *, progress: Progress | None = None) -> int:
    """Measures ``config.tune_trials`` schedules for a model on this machine and keeps the records.

    Returns how many were measured; 0 if the records held all. Raises what ``compile_model`` raises.
    """
    stages = _Stages(progress)
    backend = _backend(config)
    source = open_source(model)
    heads = _open_heads(config, source)
    config = settle(config, source.info, heads)
    program, records = _rewrite(source, config, heads, stages).program, Records.standard(measured_as(backend))
    with stages("lower"):
        lowered = lower(
            program, plan_layouts(program, backend.layouts(config.weight_dtype), config.weight_dtype), records
        )
    with stages("tune"):
        return _tune(lowered, backend, records, config.tune_trials, stages)


def _open_heads(config: CompileConfig, source: Source) -> Heads | None:
    """The heads asked for, made for this very model; None where drafts need no weights.

    Raises:
        InputError: a folder that holds no heads, or those of another model.
    """
    if config.heads is None or config.heads == NGRAM:
        return None
    heads = read_heads(config.heads)
    check_fits(heads, f"--heads {config.heads}", source.info, tokenizer_sha256(source))
    return heads


def settle(config: CompileConfig, info: ModelInfo, heads: Heads | None = None) -> CompileConfig:
    """The config with the lengths that only the model and its heads could tell.

    No chunk is wider than a whole sequence, nor than the part of a cache budget that may be free at a time.

    Raises:
        InputError: more tokens asked for than the model has positions, or a budget that is too small.
    """
    length = config.max_seq_len or min(info.max_positions, _LONGEST_DEFAULT)
    if length > info.max_positions and config.kv_budget is None:
        raise InputError(
            f"--max-seq-len {length}: {info.name} has {info.max_positions} positions; ask for at most that, "
            "or let it forget with --kv-budget"
        )
    verify_width = min(config.verify_width, length)
    if heads is not None:
        verify_width = min(verify_width, heads.drafter.config.block_size + 1)
    widest = length
    if config.kv_budget is not None and config.kv_budget < length:
        widest = KVBudget.divide(config.kv_budget, verify_width).chunk
    return dataclasses.replace(
        config,
        max_seq_len=length,
        prefill_widths=tuple(sorted({min(width, widest) for width in config.chunk_widths})),
        verify_width=verify_width,
        kv_policy=config.kv_policy or (DEFAULT_POLICY if config.kv_budget is not None else None),
    )


@dataclass(frozen=True)
class _Rewritten:
    """The model as loaded, its program after all passes, what these did, and to which nodes."""

    model: LoadedModel
    program: Program
    passes: tuple[PassReport, ...]
    history: History


class _Stages:
    """Times the stages of a compile and tells the caller of them."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress or (lambda *_: None)
        self._name = ""

    def __call__(self, name: str) -> "_Stages":
        self._name = name
        return self

    def step(self, done: int, total: int, detail: str = "") -> None:
        """So many of a stage's steps are done; how they go, in a line."""
        self._progress(self._name, done, total, detail)

    def say(self, message: str) -> None:
        """Shows a message where a stage would have stood."""
        self._progress(message)

    def __enter__(self) -> None:
        self._progress(self._name)
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = round(time.perf_counter() - self._began, 3)


def _backend(config: CompileConfig) -> Backend:
    backend = create_backend(config.target, config.arch)
    if config.tune_trials and not backend.runs_here():
        raise InputError(
            f"tuning measures on this machine, which has nothing that runs {backend.spec.arch} code; tune on one that "
            "has, or leave out the trials to compile by the records there are"
        )
    return backend


def _rewrite(source: Source, config: CompileConfig, heads: Heads | None, stages: _Stages) -> _Rewritten:
    for remark in source.remarks:
        stages.say(remark)
    with stages("load"):
        model = source.load_for_compile()
    with stages("capture"):
        program = model.capture(config)
    _check_positions(program, config, source.info, stages)
    with stages("rewrite"):
        weights = quantization_source(config, source, model)
        history, passes = History(), default_pipeline(config, heads, weights)
        program, reports = run_passes(passes, program, dump_dir=config.dump_ir, history=history)
    return _Rewritten(model, program, reports, history)


def _check_positions(program: Program, config: CompileConfig, info: ModelInfo, stages: _Stages) -> None:
    length = config.max_seq_len
    if length is None or length <= info.max_positions:
        return
    if looks_up_positions(program):
        raise InputError(
            f"--max-seq-len {length}: {info.name} looks its {info.max_positions} positions up in a table; "
            "ask for at most that"
        )
    stages.say(f"positions beyond {info.max_positions} are more than {info.name} was trained for; measure the quality")


def _tune(module: tvm.IRModule, backend: Backend, records: Records, trials: int, stages: _Stages) -> int:
    def step(found: TuningStep) -> None:
        stages.step(found.done, found.total, str(found))

    with open_bench(backend) as bench:
        return backend.tune(module, records, bench, trials, step)


def _dump(module: tvm.IRModule, folder: Path | None) -> None:
    if folder is not None:
        (folder / "scheduled.tir.py").write_text(module.script(show_meta=False), encoding="utf-8")


def _add_tokenizer(writer: ArtifactWriter, source: Source) -> None:
    with TemporaryDirectory(prefix="dspark-") as name:
        for file in source.write_tokenizer(Path(name)):
            writer.add_file(Path(name) / file, file)


def _report(model: str, config: CompileConfig, rewritten: _Rewritten, stages: _Stages) -> dict[str, Any]:
    options = dataclasses.asdict(config)
    return {
        "source": str(Path(model).resolve()) if Path(model).exists() else model,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": metadata.version("transformers"),
            "tvm": tvm.__version__,
        },
        "seconds": stages.seconds,
        "passes": [report.to_json() for report in rewritten.passes],
        "check": None,
    }
