"""``dspark heads prompts``: prompts for training heads, written by the model itself."""

from pathlib import Path
from typing import Any

import click

from dspark_compiler.commands.base import Command
from dspark_compiler.errors import InputError


@click.command("prompts", cls=Command)
@click.argument("model")
@click.option("--count", type=int, required=True, metavar="N", help="Different prompts to write.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="PROMPTS.jsonl", help="To be written."
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of the writing.")
@click.option("--new-tokens", type=int, metavar="N", default=128, show_default=True, help="Longest prompt.")
@click.option(
    "--exclude",
    "excluded",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PROMPTS.jsonl",
    help="Leave out what shares ten words in a row with these prompts, such as test data; repeatable.",
)
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Of the writing.")
@click.option("--device", metavar="NAME", help="cpu or cuda; default: cuda where there is one.")
def prompts_command(model: str, output: Path, excluded: tuple[Path, ...], device: str | None, **options: Any) -> None:
    """Let MODEL write what users would ask it: prompts for dspark heads train.

    MODEL must be one to chat with. It is given its chat template up to where the user's words begin, and goes on.
    """
    from dspark_compiler.commands.progress import make_progress
    from dspark_compiler.training.heads.own_prompts import OwnPromptOptions, own_prompts, write_prompts

    chosen = OwnPromptOptions(**options)
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: its folder does not exist; make it first")
    if output.is_dir():
        raise InputError(f"--output {output}: is a folder; give the name of a file")
    with make_progress() as progress:
        texts = own_prompts(model, excluded, device, chosen, progress)
    write_prompts(output, texts)
    click.echo(f"{output}: {len(texts)} prompts")
