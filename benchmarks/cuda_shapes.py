"""How fast models of real shapes decode on a GPU, with random weights made there: no checkpoint has to be moved.

    python -m benchmarks.cuda_shapes build qwen3-8b OUT              # where the compiler is; needs no GPU, no weights
    python -m benchmarks.cuda_shapes build qwen3-8b OUT --drafter    # with DeepSpec's drafter
    python -m benchmarks.cuda_shapes run OUT --json FILE             # on the GPU machine
    python -m benchmarks.cuda_shapes fill OUT FULL                   # with random weights, or --model's, in its files
    python -m benchmarks.cuda_shapes checkpoint qwen3-8b MODEL       # random weights for opponents (dspark bench)
    python -m benchmarks.cuda_shapes load FULL --json FILE           # how long that takes to load
    python -m benchmarks.cuda_shapes project FILE...                 # rounds measured, accepted lengths as published

What ``run`` measures runs interleaved in one process: decoding, prefill and rounds through the runtime's own loops,
the single entry points as they are replayed, and a device copy, whose rate is the roofline of what streams weights.
"""

import json
from pathlib import Path
from typing import Any

import click

_FOLDER = click.Path(path_type=Path)


@click.group()
def main() -> None:
    """Models of real shapes with random weights on a GPU."""


@main.command()
@click.argument("shape")
@click.argument("artifact", type=_FOLDER)
@click.option("--target", default="cuda", show_default=True, help="cuda or vulkan.")
@click.option("--arch", help="Default: sm_90a for cuda.")
@click.option("--dtype", help="Default: bfloat16.")
@click.option("--layers", type=int, help="Fewer than the shape has, to try things out.")
@click.option("--max-seq-len", type=int, default=1024, show_default=True)
@click.option("--prefill", default="512", show_default=True, help="Chunks a prompt is read in.")
@click.option("--drafter", is_flag=True, help="With a drafter of five layers.")
@click.option("--quantize")
@click.option("--quantize-heads")
def build(
    shape: str, artifact: Path, layers: int | None, prefill: str, drafter: bool, arch: str | None, **options: Any
) -> None:
    """Write an artifact without weights."""
    from benchmarks.shapes.build import build as write
    from benchmarks.shapes.build import config_for

    widths = tuple(int(width) for width in prefill.split(","))
    arch = arch or ("sm_90a" if options["target"] == "cuda" else None)
    config = config_for(drafter, prefill_widths=widths, arch=arch, **options)
    write(shape, artifact, config, drafter=drafter, layers=layers)


@main.command()
@click.argument("artifact", type=_FOLDER)
@click.option("--prompt", type=int, default=512, show_default=True)
@click.option("--new", type=int, default=128, show_default=True)
@click.option("--turns", type=int, default=3, show_default=True)
@click.option("--context", "contexts", type=int, multiple=True, help="Further lengths at which single steps are timed.")
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--json", "file", type=_FOLDER)
def run(artifact: Path, file: Path | None, **options: Any) -> None:
    """Measure an artifact with weights made here."""
    from benchmarks.shapes.measure import Bench

    _report(Bench(artifact).measure(**options), file)


@main.command()
@click.argument("artifact", type=_FOLDER)
@click.argument("output", type=_FOLDER)
@click.option("--model", help="A checkpoint whose weights to take; default: random ones.")
def fill(artifact: Path, output: Path, model: str | None) -> None:
    """Write an artifact with its weights in files."""
    from benchmarks.shapes.weights import write_filled
    from dspark_compiler.artifact import Artifact

    hollow = Artifact.open(artifact, verify=False, runnable=False)
    if model is None:
        params = None
    else:
        from benchmarks.shapes.checkpoint import params_of

        params = params_of(hollow, model)
    click.echo(write_filled(hollow, output, params))


@main.command()
@click.argument("shape")
@click.argument("folder", type=_FOLDER)
def checkpoint(shape: str, folder: Path) -> None:
    """Write a checkpoint with random weights, for opponents that start from one."""
    from benchmarks.shapes.checkpoint import write_checkpoint

    write_checkpoint(shape, folder)


@main.command()
@click.argument("artifact", type=_FOLDER)
@click.option("--prompt", type=int, default=512, show_default=True)
@click.option("--verify/--no-verify", default=True, show_default=True)
@click.option("--json", "file", type=_FOLDER)
def load(artifact: Path, prompt: int, verify: bool, file: Path | None) -> None:
    """Time from nothing to the first token of an artifact on disk."""
    from benchmarks.shapes.loading import load_and_answer

    _report(load_and_answer(artifact, prompt, verify=verify), file)


@main.command()
@click.argument("measured", type=_FOLDER, nargs=-1)
@click.option("--json", "file", type=_FOLDER)
def project(measured: tuple[Path, ...], file: Path | None) -> None:
    """From files that ``run`` wrote: speeds with the accepted lengths that the DSpark paper reports."""
    from benchmarks.shapes.projection import project as projected

    _report({path.stem: projected(json.loads(path.read_text())) for path in measured}, file)


def _report(found: dict[str, Any], file: Path | None) -> None:
    click.echo(json.dumps({key: value for key, value in found.items() if key != "turns"}, indent=1))
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
