"""``dspark eval``: how good an artifact is, alone or at several cache budgets."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dspark_compiler.commands.base import Command
from dspark_compiler.commands.bench import check_outputs

if TYPE_CHECKING:
    from dspark_compiler.artifact import Artifact
    from dspark_compiler.bench.evaluate import EvalConfig
    from dspark_compiler.bench.tasks.base import Progress


def _fractions(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...]:
    try:
        return () if value is None else tuple(float(item) for item in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of fractions such as 0.5,0.25", context, parameter) from None


def _names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return () if value is None else tuple(value.split(","))


@click.command("eval", cls=Command)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME",
    help="ppl, needle (retrieval), lambada or lambada-stream (last words), agreement (greedy tokens); several allowed.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="[TASK=]FILE",
    help='Text, or .jsonl with a "text" a line, for all tasks or one; several allowed. Default: built-in.',
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="ARTIFACT",
    help="Artifact whose greedy tokens agreement looks for; default: the source model's.",
)
@click.option("--model", metavar="SOURCE", help="Source model; default: what was compiled, if it is still there.")
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="[TASK=]N",
    help="At most so many windows of text, documents, passages or prompts, of all tasks or one.",
)
@click.option("--length", type=int, metavar="N", help="Tokens of a document; default: as many as ARTIFACT holds.")
@click.option(
    "--sweep-budgets",
    callback=_fractions,
    metavar="F,F,…",
    help="Compile with so many slots for each of the tokens that ARTIFACT holds, too, as in 0.5,0.25.",
)
@click.option("--sweep-policies", callback=_names, metavar="NAME,…", help="Policies of a sweep; default: all.")
@click.option(
    "--kv-weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Trained weights for a policy of the sweep that needs some.",
)
@click.option("--device", type=int, metavar="N", default=0, show_default=True, help="GPU to run on, by number.")
@click.option("--threads", type=int, metavar="N", help="Default: all cores.")
@click.option("--no-verify", is_flag=True, help="Skip the check of the artifact's SHA-256 sums.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the result here.")
@click.option(
    "--plot", "plot_file", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw a sweep: quality by memory."
)
def eval_command(
    sweep_budgets: tuple[float, ...],
    sweep_policies: tuple[str, ...],
    kv_weights: Path | None,
    no_verify: bool,
    json_file: Path | None,
    plot_file: Path | None,
    **options: Any,
) -> None:
    """Measure the quality of ARTIFACT, beside its source model where that is at hand.

    With --sweep-budgets, beside variants of itself with fewer slots in the cache.
    """
    from dspark_compiler.bench.evaluate import EvalConfig
    from dspark_compiler.commands.progress import make_progress
    from dspark_compiler.errors import InputError

    for option, given in (("--sweep-policies", sweep_policies), ("--kv-weights", kv_weights), ("--plot", plot_file)):
        if given and not sweep_budgets:
            raise InputError(f"{option}: is for a sweep; give --sweep-budgets, too")
    config = EvalConfig(**options, verify=not no_verify)
    check_outputs(json_file, plot_file)
    with make_progress() as progress:
        if sweep_budgets:
            _sweep(config, sweep_budgets, sweep_policies, kv_weights, json_file, plot_file, progress)
        else:
            _evaluate(config, json_file, progress)


def _evaluate(config: "EvalConfig", json_file: Path | None, progress: "Progress") -> None:
    from dspark_compiler.bench.evaluate import evaluate

    results = evaluate(config, config.opened, progress, reference=config.reference)
    _show(config.opened, results)
    if json_file is not None:
        manifest = config.opened.manifest
        document = {"model": manifest.model.name, "target": manifest.target.kind, "dtype": manifest.dtype}
        text = json.dumps(document | {"results": results}, indent=1, ensure_ascii=False)
        json_file.write_text(text + "\n", encoding="utf-8")


def _sweep(
    config: "EvalConfig",
    fractions: tuple[float, ...],
    policies: tuple[str, ...],
    weights: Path | None,
    json_file: Path | None,
    plot_file: Path | None,
    progress: "Progress",
) -> None:
    from rich.console import Console

    from dspark_compiler.bench.run_sweep import run_sweep
    from dspark_compiler.bench.sweep_table import sweep_table

    document = run_sweep(config, fractions, policies, weights, json_file, progress)
    Console().print(sweep_table(document))
    if plot_file is not None:
        from dspark_compiler.bench.sweep_plot import plot_sweep

        plot_sweep(document, plot_file)


def _show(artifact: "Artifact", results: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    for task, result in results.items():
        title = f"{artifact.manifest.model.name} {artifact.manifest.dtype}: {task}"
        table = Table("", "", title=title, show_header=False)
        for name, value in result.items():
            if not isinstance(value, list):
                table.add_row(name.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value))
        Console().print(table)
