"""``dspark-compile``: a model becomes an artifact."""

from pathlib import Path
from typing import Any

import click

from dspark_compiler.commands.base import Command
from dspark_compiler.commands.target import configured
from dspark_compiler.config import (
    DTYPES,
    EMITS,
    HEADS_QUANTIZATIONS,
    KV_DTYPES,
    QUANTIZATIONS,
    TARGETS,
    CompileConfig,
)

_DEFAULTS = CompileConfig()


def _widths(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(item) for item in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 16,128", context, parameter) from None


def model_options(command: Any) -> Any:
    """The options that decide which kernels a model needs."""
    options = (
        click.option(
            "--target",
            metavar="NAME",
            help=f"What to compile for: {', '.join(TARGETS)}; default: the best device that works here.",
        ),
        click.option(
            "--arch", metavar="NAME", help="Processor or GPU to compile for, x86-64-v3 or sm_90a; default: this."
        ),
        click.option(
            "--dtype",
            type=click.Choice(DTYPES),
            help="Type of weights; default: float32 on the CPU, bfloat16 on GPUs.",
        ),
        click.option(
            "--kv-dtype",
            type=click.Choice(KV_DTYPES),
            help="Type of stored keys and values; default: what is computed with.",
        ),
        click.option(
            "--quantize",
            type=click.Choice(QUANTIZATIONS),
            help="Weights in fewer bits; keep: those of a quantized checkpoint as they are. Default: plain weights.",
        ),
        click.option(
            "--calibration",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Text that int4-g128-awq watches the model read; default: a built-in one.",
        ),
        click.option(
            "--max-seq-len",
            type=int,
            metavar="N",
            help="Tokens a sequence can have; default: the model's own limit, at most 4096.",
        ),
        click.option(
            "--max-batch",
            type=int,
            metavar="N",
            default=_DEFAULTS.max_batch,
            show_default=True,
            help="Sequences at a time.",
        ),
        click.option(
            "--prefill-widths",
            callback=_widths,
            metavar="N,N,…",
            help="Chunks a prompt is read in; default: 16,128 on the CPU, 32,512 on GPUs.",
        ),
        click.option(
            "--verify-width",
            type=int,
            metavar="N",
            default=_DEFAULTS.verify_width,
            show_default=True,
            help="Tokens verified in one step.",
        ),
        click.option(
            "--kv-budget",
            type=int,
            metavar="N",
            help="Cache slots a layer, however long the sequence; default: one for each token.",
        ),
        click.option(
            "--kv-policy",
            metavar="NAME",
            help="What is evicted to keep the budget; see the documentation for the names.",
        ),
        click.option(
            "--kv-weights",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Trained weights of a policy that needs some.",
        ),
        click.option(
            "--heads",
            type=click.Path(path_type=Path),
            metavar="PATH",
            help='Decode heads: a folder of "dspark heads train" or "import", or ngram to look drafts up in the text.',
        ),
        click.option(
            "--quantize-heads",
            type=click.Choice(HEADS_QUANTIZATIONS),
            help="Weights of the decode heads in fewer bits: drafts get cheaper, answers stay what they are.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("dspark-compile", cls=Command)
@click.version_option(package_name="dspark-compile")
@click.argument("model")
@model_options
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Default: NAME-TARGET.dspark.")
@click.option(
    "--emit",
    type=click.Choice(EMITS),
    default=_DEFAULTS.emit,
    show_default=True,
    help="onnx: the rewritten graph as ONNX models, an artifact of --target onnxruntime.",
)
@click.option(
    "--tune-trials",
    type=int,
    metavar="N",
    default=_DEFAULTS.tune_trials,
    show_default=True,
    help="Schedules to have measured for this model.",
)
@click.option(
    "--max-quality-loss",
    type=float,
    metavar="X",
    help="Find the smallest --kv-budget, and the best of the policies in --kv-policy A,B, that lose at most this.",
)
@click.option("--dump-ir", type=click.Path(path_type=Path), metavar="DIR", help="Write the program after each pass.")
@click.option("--check/--no-check", default=_DEFAULTS.check, show_default=True, help="Compare with the source model.")
def compile_command(model: str, **options: Any) -> None:
    """Compile MODEL (a Hugging Face folder or hub id, a .gguf or .onnx file) to an artifact that runs without torch."""
    from dspark_compiler.commands.progress import make_progress
    from dspark_compiler.driver import compile_model

    config = configured(**options)
    with make_progress() as progress:
        artifact = compile_model(model, config, progress=progress)
    click.echo(f"{artifact.path}: {artifact.size() / 1e6:.0f} MB")
