"""Calibrates the heads of a model: compiled with them, the model answers prompts, and their confidences are judged."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dspark_compiler.config import CompileConfig, Target
from dspark_compiler.driver import compile_model
from dspark_compiler.errors import InputError
from dspark_compiler.frontend.fingerprint import tokenizer_sha256
from dspark_compiler.frontend.source import open_source
from dspark_compiler.models.drafters.checkpoint import check_fits, read_heads, write_calibration
from dspark_compiler.models.drafters.heads import Calibration
from dspark_compiler.training.calibration import calibrate
from dspark_compiler.training.rollouts import Answers, RolloutOptions, answer, draw_prompts

Progress = Callable[..., None]

_TOGETHER = 8  # answers; on two cores a round of so many takes a tenth to a quarter less than eight of one


def calibrate_heads(
    model: str, folder: Path, files: Sequence[Path], options: RolloutOptions, target: Target, progress: Progress
) -> tuple[Calibration, Answers]:
    """Writes the calibration beside the heads' weights; ``target`` is what answers the prompts.

    Raises:
        InputError: heads without confidences or of another model, data that cannot be used, or too little of it.
    """
    heads = read_heads(folder)
    if not heads.drafter.config.enable_confidence_head:
        raise InputError(f"{folder}: these heads give no confidences, so there is nothing to calibrate")
    source = open_source(model)
    check_fits(heads, str(folder), source.info, tokenizer_sha256(source))
    prompts = draw_prompts(files, options)
    with TemporaryDirectory(prefix="dspark-calibrate-") as directory:
        config = CompileConfig(
            output=Path(directory) / "artifact",
            heads=folder,
            target=target,
            verify_width=heads.drafter.config.block_size + 1,
            max_batch=_TOGETHER if target == "cpu" else 1,
            check=False,
        )
        artifact = compile_model(model, config, progress=progress)
        answers = answer(artifact, prompts, options, progress)
    calibration = calibrate(answers.rollouts)
    write_calibration(folder, calibration)
    return calibration, answers
