"""``dspark heads train``: decode heads for a model, from prompts alone."""

from pathlib import Path
from typing import Any

import click

from dspark_compiler.commands.base import Command
from dspark_compiler.errors import InputError


@click.command("train", cls=Command)
@click.argument("model")
@click.option(
    "--data",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    metavar="PROMPTS.jsonl",
    help='Prompts: objects with "messages", "prompt", "instruction", "question", "turns" or "text"; repeatable.',
)
@click.option(
    "--sequences",
    "earlier",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="HEADS.work",
    help="What MODEL answered in an earlier run teaches too; repeatable.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="HEADS", help="To be written.")
@click.option("--type", "drafter_type", default="dspark", show_default=True, help="Only dspark heads can be trained.")
@click.option("--layers", type=int, metavar="N", default=2, show_default=True, help="The drafter's own.")
@click.option("--block-size", type=int, metavar="N", default=7, show_default=True, help="Tokens drafted in a round.")
@click.option("--taps", metavar="L,L,…", help="Layers of MODEL it reads; default: four, evenly spread.")
@click.option("--markov-rank", type=int, metavar="N", default=64, show_default=True, help="Sequential head; 0: none.")
@click.option("--head-type", default="vanilla", show_default=True, help="Sequential head: vanilla, gated or rnn.")
@click.option("--confidence/--no-confidence", default=True, show_default=True, help="Train a confidence head.")
@click.option(
    "--init",
    metavar="target|random|HEADS",
    default="target",
    show_default=True,
    help="Weights to begin with: layers of MODEL, none, or those of other heads.",
)
@click.option("--samples", type=int, metavar="N", default=1, show_default=True, help="Answers MODEL gives a prompt.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of these answers.")
@click.option("--new-tokens", type=int, metavar="N", default=256, show_default=True, help="Longest answer.")
@click.option("--max-length", type=int, metavar="N", default=512, show_default=True, help="Prompt and answer together.")
@click.option("--steps", type=int, metavar="N", default=2000, show_default=True, help="Steps of descent.")
@click.option("--minutes", type=float, metavar="M", help="Train for so long, instead of --steps.")
@click.option("--batch", type=int, metavar="N", default=32, show_default=True, help="Sequences a step.")
@click.option("--anchors", type=int, metavar="N", default=64, show_default=True, help="Blocks a sequence and step.")
@click.option("--lr", type=float, default=6e-4, show_default=True, help="Highest learning rate.")
@click.option("--loss-decay", type=float, help="Slot k's loss weighs exp(-(k-1)/this); default: the block size.")
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Of answers and training.")
@click.option("--device", metavar="NAME", help="cpu or cuda; default: cuda where there is one.")
@click.option(
    "--checkpoint-every", type=float, metavar="SECONDS", default=60, show_default=True, help="How much may be lost."
)
def train_command(model: str, files: tuple[Path, ...], earlier: tuple[Path, ...], output: Path, **given: Any) -> None:
    """Train decode heads for MODEL: it answers the prompts itself, and a drafter learns to foresee its answers.

    What has been done is kept in HEADS.work; after an interrupt, the same command goes on from there. One prompt in 32
    is kept from training and judges the heads. A prompt that is given twice is answered twice as often.
    """
    from dspark_compiler.commands.progress import make_progress
    from dspark_compiler.models.drafters.checkpoint import check_output, write_heads
    from dspark_compiler.training.heads.train import train_heads

    options = _options(given)
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: its folder does not exist; make it first")
    check_output(output)
    with make_progress() as progress:
        heads = train_heads(model, files, output, options, progress, earlier)
    write_heads(output, heads)
    for name, found in heads.training["held_out"].items():
        accepted = " ".join(f"{value:.2f}" for value in found["acceptance"])
        click.echo(f"{name.replace('_', ' ')}: loss {found['loss']:.3f}, tau {found['tau']:.2f}, acceptance {accepted}")
    if len(by_file := heads.training["held_out_tau"]) > 1:
        for name, tau in by_file.items():
            click.echo(f"prompts of {name}: tau {tau:.2f}")
    click.echo(f"{output}: written; {output}.work can be removed")


def _options(given: dict[str, Any]) -> Any:
    from dspark_compiler.training.heads.options import DrafterOptions, FitOptions, GenerationOptions, TrainingOptions

    def pick(*names: str) -> dict[str, Any]:
        return {name: given[name] for name in names}

    drafter = pick("drafter_type", "layers", "block_size", "markov_rank", "head_type", "confidence", "init")
    return TrainingOptions(
        GenerationOptions(**pick("samples", "temperature", "new_tokens", "max_length", "seed")),
        DrafterOptions(taps=_parse_taps(given["taps"]), **drafter),
        FitOptions(**pick("steps", "minutes", "batch", "anchors", "lr", "loss_decay", "seed")),
        **pick("device", "checkpoint_every"),
    )


def _parse_taps(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--taps {text}: give numbers of layers with commas between them, such as 1,9,17,25") from None
