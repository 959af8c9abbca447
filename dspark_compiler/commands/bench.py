"""``dspark bench``: an artifact's speed, alone or against other ways to run its source model."""

import importlib.util
import json
from pathlib import Path

import click

from dspark_compiler.commands.base import Command
from dspark_compiler.errors import InputError


@click.command("bench", cls=Command)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--against",
    multiple=True,
    metavar="NAME",
    help="eager, torch-compile, onnxruntime or no-heads; may be given several times.",
)
@click.option("--model", metavar="SOURCE", help="Source model of the opponents; default: what was compiled.")
@click.option("--prompt-len", type=int, metavar="N", default=128, show_default=True, help="Tokens of a prompt.")
@click.option("--new-tokens", type=int, metavar="N", default=128, show_default=True, help="Tokens made from each.")
@click.option("--repeats", type=int, metavar="N", default=5, show_default=True, help="Prompts, each another.")
@click.option("--device", type=int, metavar="N", default=0, show_default=True, help="GPU to run on, by number.")
@click.option("--threads", type=int, metavar="N", help="Default: all cores.")
@click.option("--no-verify", is_flag=True, help="Skip the check of the artifact's SHA-256 sums.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the result here.")
@click.option(
    "--plot", "plot_file", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw latency by position."
)
def bench_command(
    artifact: Path,
    against: tuple[str, ...],
    model: str | None,
    prompt_len: int,
    new_tokens: int,
    repeats: int,
    device: int,
    threads: int | None,
    no_verify: bool,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure time to first token, time of the following ones and memory of ARTIFACT.

    All contestants get the same prompts, turn by turn, each in a process of its own, and decode greedily.
    """
    from rich.console import Console

    from dspark_compiler.bench.harness import BenchConfig, measure
    from dspark_compiler.bench.report import report, tables
    from dspark_compiler.bench.verdict import partings
    from dspark_compiler.commands.progress import make_progress

    config = BenchConfig(
        artifact, against, model, prompt_len, new_tokens, repeats, threads, verify=not no_verify, device=device
    )
    check_outputs(json_file, plot_file)
    with make_progress() as progress:
        measured = measure(config, progress)
    parted = partings(measured)
    result = report(measured, parted)
    console = Console()
    for table in tables(result):
        console.print(table)
    if measured.is_disturbed:
        console.print(f"other programs kept {measured.busy_cores:.1f} cores busy: measure again when they rest")
    for parting in parted:
        console.print(f"tokens differ: {parting}", highlight=False)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if plot_file is not None:
        from dspark_compiler.bench.plot import plot

        plot(measured, plot_file)


def check_outputs(json_file: Path | None, plot_file: Path | None = None) -> None:
    """Makes sure, before minutes of work, that results can be written.

    Raises:
        InputError: a folder that does not exist, a kind of picture that cannot be drawn, or matplotlib missing.
    """
    for option, file in (("--json", json_file), ("--plot", plot_file)):
        if file is not None and not file.absolute().parent.is_dir():
            raise InputError(f"{option} {file}: no folder {file.absolute().parent}; make it first")
    if plot_file is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot needs the package matplotlib; pip install 'dspark-compile[compile]' brings it")
    if plot_file.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {plot_file}: draws .png, .svg or .pdf files")
