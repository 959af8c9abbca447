"""``dspark heads calibrate`` and ``dspark heads eval``: what drafts and confidences are worth."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dspark_compiler.commands.base import Command
from dspark_compiler.commands.bench import check_outputs
from dspark_compiler.commands.target import configured
from dspark_compiler.config import TARGETS

if TYPE_CHECKING:
    from dspark_compiler.artifact import Artifact
    from dspark_compiler.training.rollouts import Answers, RolloutOptions

_F = TypeVar("_F", bound=Callable[..., Any])
_BY_POSITION = {
    "acceptance": "acceptance",
    "ece": "ECE",
    "ece_by_chance": "ECE of exact confidences, from so many rounds",
    "ece_uncalibrated": "ECE before calibration",
    "auc": "AUC",
}


def rollout_options(prompts: int, new_tokens: int) -> Callable[[_F], _F]:
    """The options of a measurement, with defaults of its own."""

    def decorate(command: _F) -> _F:
        options = (
            click.option(
                "--data",
                "files",
                type=click.Path(path_type=Path),
                multiple=True,
                required=True,
                metavar="PROMPTS.jsonl",
                help="Prompts the heads were not trained on; repeatable.",
            ),
            click.option(
                "--prompts",
                type=int,
                metavar="N",
                default=prompts,
                show_default=True,
                help="Drawn at random from the files.",
            ),
            click.option(
                "--samples", type=int, metavar="N", default=1, show_default=True, help="Answers to each prompt."
            ),
            click.option(
                "--new-tokens", type=int, metavar="N", default=new_tokens, show_default=True, help="Longest answer."
            ),
            click.option("--temperature", type=float, default=1.0, show_default=True, help="Of answers; 0: greedy."),
            click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Of prompts and answers."),
        )
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command("calibrate", cls=Command)
@click.argument("model")
@click.argument("heads", type=click.Path(path_type=Path))
@rollout_options(prompts=128, new_tokens=256)
@click.option(
    "--target",
    metavar="NAME",
    help=f"What answers the prompts: {', '.join(TARGETS)}; default: the best device that works here.",
)
def calibrate_command(model: str, heads: Path, files: tuple[Path, ...], target: str | None, **options: Any) -> None:
    """Make the confidences of HEADS tell how often MODEL keeps a draft; writes HEADS/calibration.json.

    MODEL is compiled with HEADS and answers the prompts; half of these fit temperatures, with and without shifts, the
    other half judges them. What does not help is not kept. Thousands of rounds tell small errors, which is a minute on
    a GPU.
    """
    from dspark_compiler.commands.progress import make_progress
    from dspark_compiler.training.calibrate_heads import calibrate_heads
    from dspark_compiler.training.rollouts import RolloutOptions

    asked = RolloutOptions(**options)
    chosen = configured(output=heads, target=target, arch=None).target
    with make_progress() as progress:
        found, answers = calibrate_heads(model, heads, files, asked, chosen, progress)
    click.echo(f"blocks: {len(answers.rollouts.drafted)}, tokens a round: {_number(answers.tau)}")
    click.echo(f"temperatures: {_row(found.temperatures) or 'not applied, they do not help'}")
    if found.shifts:
        click.echo(f"shifts:       {_row(found.shifts)}")
    click.echo(f"ECE before: {_row(found.ece_before)}")
    click.echo(f"ECE after:  {_row(found.ece_after)}")
    click.echo(f"AUC:        {_row(found.auc)}")
    click.echo(f"{heads}: calibration.json written")


@click.command("eval", cls=Command)
@click.argument("artifact", type=click.Path(path_type=Path))
@rollout_options(prompts=64, new_tokens=256)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Also write the figures there."
)
def eval_command(artifact: Path, files: tuple[Path, ...], json_file: Path | None, **options: Any) -> None:
    """Measure the heads of ARTIFACT: tokens a round, how often each draft stays, how well confidences tell."""
    from dspark_compiler.artifact import Artifact
    from dspark_compiler.commands.progress import make_progress
    from dspark_compiler.training.rollouts import RolloutOptions, answer, draw_prompts

    check_outputs(json_file)
    asked = RolloutOptions(**options)
    prompts = draw_prompts(files, asked)
    opened = Artifact.open(artifact)
    with make_progress() as progress:
        answers = answer(opened, prompts, asked, progress)
    figures = measure(opened, answers, asked, files)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    counts = ", ".join(f"{name}: {figures[name]}" for name in ("prompts", "rounds"))
    click.echo(f"tokens a round: {_number(figures['tau'])} ({counts})")
    for name, title in _BY_POSITION.items():
        if figures[name] is not None:
            click.echo(f"{title}: {_row(figures[name])}")


def measure(artifact: "Artifact", answers: "Answers", options: "RolloutOptions", files: Sequence[Path]) -> Any:
    """What ``eval`` reports, as JSON data; the four lists are per position of the block."""
    from dspark_compiler.training import reliability

    heads = artifact.manifest.heads
    assert heads is not None, "answers come of heads"
    rollouts = answers.rollouts
    known = rollouts.logits is not None
    scaling = heads.temperatures, heads.shifts
    return {
        "artifact": artifact.path.name,
        "heads": heads.type,
        "block_size": heads.block_size,
        "data": [file.name for file in files],
        "prompts": len(answers.completions) // options.samples,
        "samples": options.samples,
        "new_tokens": options.new_tokens,
        "temperature": options.temperature,
        "seed": options.seed,
        "tokens": sum(len(completion.tokens) for completion in answers.completions),
        "rounds": sum(completion.rounds for completion in answers.completions),
        "tau": answers.tau,
        "acceptance": reliability.acceptance(rollouts, heads.block_size),
        "ece": reliability.survival_errors(rollouts, *scaling) if known else None,
        "ece_by_chance": reliability.errors_by_chance(rollouts, *scaling) if known else None,
        "ece_uncalibrated": reliability.survival_errors(rollouts, ()) if known and any(scaling) else None,
        "auc": reliability.discrimination(rollouts) if known else None,
    }


def _row(values: Sequence[float | None]) -> str:
    return " ".join(_number(value) for value in values)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
