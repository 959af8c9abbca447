"""``dspark tune``: measures schedules for a model and keeps the records, without writing an artifact."""

from typing import Any

import click

from dspark_compiler.commands.base import Command
from dspark_compiler.commands.compile import model_options
from dspark_compiler.commands.target import configured


@click.command("tune", cls=Command)
@click.argument("model")
@click.option("--trials", type=int, metavar="N", required=True, help="Schedules to have on record for this model.")
@model_options
def tune_command(model: str, trials: int, **options: Any) -> None:
    """Measure schedules for MODEL on this machine; later compiles for the same architecture use the best.

    Records are kept below $DSPARK_RECORDS, or ~/.cache/dspark-compile/records. Give the options that the compile will
    be given: schedules belong to sizes. Interrupting keeps what was measured, and a second call goes on from there.
    """
    from dspark_compiler.commands.progress import make_progress
    from dspark_compiler.driver import tune_model

    if trials < 1:
        raise click.BadParameter(f"{trials} is not at least 1", param_hint="--trials")
    config = configured(tune_trials=trials, **options)
    with make_progress() as progress:
        measured = tune_model(model, config, progress=progress)
    click.echo(f"{measured} of {trials} schedules measured; the others were on record, or the model has no more")
