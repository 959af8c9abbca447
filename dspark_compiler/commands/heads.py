"""``dspark heads``: the drafters that let a model decode several tokens at once."""

from pathlib import Path

import click

from dspark_compiler.commands.base import Command, Group, print_json
from dspark_compiler.commands.heads_measure import calibrate_command, eval_command
from dspark_compiler.commands.heads_prompts import prompts_command
from dspark_compiler.commands.heads_train import train_command


@click.group("heads", cls=Group)
def heads_group() -> None:
    """Import, make, judge and look at decode heads."""


@heads_group.command("import", cls=Command)
@click.argument("source")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="HEADS", help="Folder to be written."
)
@click.option(
    "--model", metavar="MODEL", help="The model they were trained for: compared with what the checkpoint says."
)
def import_command(source: str, output: Path, model: str | None) -> None:
    """Turn SOURCE, a DeepSpec checkpoint (folder or hub id), into heads that dspark-compile takes."""
    from dspark_compiler.frontend.source import open_source
    from dspark_compiler.models.drafters.checkpoint import check_output, write_heads
    from dspark_compiler.training.importing import find_checkpoint, import_heads

    check_output(output)
    heads = import_heads(find_checkpoint(source), None if model is None else open_source(model))
    write_heads(output, heads)
    config = heads.drafter.config
    compared = "nothing was compared with a model (--model does)" if model is None else f"made for {heads.target.name}"
    click.echo(f"{output}: {config.drafter_type} on {config.backbone}, {config.block_size} tokens a block; {compared}")


@heads_group.command("inspect", cls=Command)
@click.argument("heads", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect_command(heads: Path, as_json: bool) -> None:
    """Show what HEADS are: a folder of heads, or a DeepSpec checkpoint that has not been imported."""
    from dspark_compiler.commands.heads_report import summarize, tables
    from dspark_compiler.models.drafters.checkpoint import read_heads
    from dspark_compiler.models.drafters.deepspec import is_deepspec, read_deepspec

    published = is_deepspec(heads)
    read = read_deepspec(heads).heads if published else read_heads(heads)
    summary = summarize(str(heads), read, "DeepSpec checkpoint" if published else "decode heads")
    if as_json:
        print_json(summary)
        return
    from rich.console import Console

    console = Console()
    for table in tables(summary):
        console.print(table)


heads_group.add_command(prompts_command)
heads_group.add_command(train_command)
heads_group.add_command(calibrate_command)
heads_group.add_command(eval_command)
