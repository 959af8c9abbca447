"""``dspark kvzap``: the trained part of the pruning policy of that name."""

from pathlib import Path

import click

from dspark_compiler.commands.base import Command, Group
from dspark_compiler.errors import InputError


@click.group("kvzap", cls=Group)
def kvzap_group() -> None:
    """Make the weights that --kv-policy kvzap needs."""


@kvzap_group.command("train", cls=Command)
@click.argument("model")
@click.option(
    "--data",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    metavar="FILE",
    help='Text, or .jsonl with a "text" a line; may be given several times.',
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE.safetensors", help="To be written."
)
@click.option("--documents", type=int, metavar="N", default=40, show_default=True, help="Pieces of text to learn from.")
@click.option("--length", type=int, metavar="N", default=1024, show_default=True, help="Tokens of a document.")
@click.option(
    "--hidden", type=int, metavar="N", help="Hidden units a layer, 0 for none; default: an eighth of MODEL's."
)
@click.option("--steps", type=int, metavar="N", default=1000, show_default=True, help="Steps of descent a layer.")
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Same seed, same weights.")
def train_command(
    model: str,
    files: tuple[Path, ...],
    output: Path,
    documents: int,
    length: int,
    hidden: int | None,
    steps: int,
    seed: int,
) -> None:
    """Train, for MODEL, what predicts from a token's hidden state how much its key and value will matter.

    MODEL reads each document and is asked to repeat it; tokens it does not look back at need not be kept. An eighth of
    the documents is kept from training and judges it.
    """
    from dspark_compiler.commands.progress import make_progress
    from dspark_compiler.models.surrogate import write_surrogate
    from dspark_compiler.training.kvzap import TrainingOptions, train

    options = TrainingOptions(documents, length, hidden, steps, seed)
    if output.suffix != ".safetensors" or not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: give a .safetensors file in a folder that exists")
    with make_progress() as progress:
        surrogate = train(model, files, options, progress)
    write_surrogate(output, surrogate)
    correlation, r2 = (sum(values) / len(values) for values in (surrogate.correlation, surrogate.r2))
    click.echo(f"{output}: on text kept from training, correlation {correlation:.3f}, R^2 {r2:.3f} (mean of layers)")
