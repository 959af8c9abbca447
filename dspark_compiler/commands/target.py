"""What is compiled for where nobody says it."""

from typing import Any

import click

from dspark_compiler.config import CompileConfig


def configured(**options: Any) -> CompileConfig:
    """What the options ask for; a target that is chosen in their place is said aloud, on stderr.

    Raises:
        InputError: a value out of range, naming the option.
    """
    if options["target"] is None and options.get("emit") == "onnx":
        options["target"] = "onnxruntime"
    if options["target"] is not None:
        return CompileConfig(**options)
    from dspark_compiler.machine.best_target import best_target

    choice = best_target(options["arch"])
    config = CompileConfig(**{**options, "target": choice.target})
    click.echo(f"--target {choice.target}: {choice.reason}", err=True)
    return config
