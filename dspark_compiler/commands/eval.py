"""``dspark eval``: how good an artifact is."""

import json
from pathlib import Path

import click

from dspark_compiler.commands.base import Command


@click.command("eval", cls=Command)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--task", required=True, metavar="NAME", help="ppl (perplexity) or agreement (greedy tokens with eager).")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='Text, or .jsonl with a "text" a line; agreement reads a prompt a line. Default: built-in.',
)
@click.option("--model", metavar="SOURCE", help="Source model; default: what was compiled, if it is still there.")
@click.option("--limit", type=int, metavar="N", help="At most so many windows of text, or prompts.")
@click.option("--threads", type=int, metavar="N", help="Default: all cores.")
@click.option("--no-verify", is_flag=True, help="Skip the check of the artifact's SHA-256 sums.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the result here.")
def eval_command(
    artifact: Path,
    task: str,
    data: Path | None,
    model: str | None,
    limit: int | None,
    threads: int | None,
    no_verify: bool,
    json_file: Path | None,
) -> None:
    """Measure the quality of ARTIFACT, beside its source model where that is at hand."""
    from rich.console import Console
    from rich.table import Table

    from dspark_compiler.artifact import Artifact
    from dspark_compiler.bench.tasks import TASKS
    from dspark_compiler.bench.tasks.base import Context
    from dspark_compiler.commands.bench import check_outputs
    from dspark_compiler.commands.progress import make_progress

    if task not in TASKS:
        raise click.BadParameter(f"{task!r} is not one of {', '.join(TASKS)}", param_hint="--task")
    check_outputs(json_file)
    opened = Artifact.open(artifact, verify=not no_verify)
    with make_progress() as progress:
        result = TASKS[task](Context(opened, data, model, limit, threads, progress))
    table = Table("", "", title=f"{opened.manifest.model.name} {opened.manifest.dtype}: {task}", show_header=False)
    for name, value in result.items():
        if not isinstance(value, list):
            table.add_row(name.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value))
    Console().print(table)
    if json_file is not None:
        manifest = opened.manifest
        document = {"task": task, "model": manifest.model.name, "target": manifest.target.kind, "dtype": manifest.dtype}
        json_file.write_text(json.dumps(document | result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
