"""``dspark generate``: an artifact continues a prompt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dspark_compiler.commands.base import Command, print_json
from dspark_compiler.errors import InputError

if TYPE_CHECKING:
    from dspark_compiler.runtime.engine import Stream


@click.command("generate", cls=Command)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--prompt", metavar="TEXT", help="Text to continue.")
@click.option("--prompt-ids", type=click.Path(path_type=Path), metavar="FILE.json", help="Token ids to continue.")
@click.option("--chat", is_flag=True, help="Put the text through the model's chat template.")
@click.option("--max-new-tokens", type=int, metavar="N", default=128, show_default=True)
@click.option("--temperature", type=float, metavar="X", default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--top-p", type=float, metavar="X", default=1.0, show_default=True, help="Draw from this much of the probability."
)
@click.option(
    "--top-k", type=int, metavar="N", default=0, show_default=True, help="Draw from this many tokens; 0: all."
)
@click.option(
    "--min-p",
    type=float,
    metavar="X",
    default=0.0,
    show_default=True,
    help="Drop tokens this much rarer than the first.",
)
@click.option("--repetition-penalty", type=float, metavar="X", default=1.0, show_default=True)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@click.option("--seed", type=int, metavar="N", help="Reproduces a sampled answer.")
@click.option("--no-heads", is_flag=True, help="Decode token by token though the artifact has heads.")
@click.option("--device", type=int, metavar="N", default=0, show_default=True, help="GPU to run on, by number.")
@click.option("--threads", type=int, metavar="N", help="Default: all cores.")
@click.option("--no-verify", is_flag=True, help="Skip the check of the artifact's SHA-256 sums.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of text as it comes.")
def generate_command(
    artifact: Path,
    prompt: str | None,
    prompt_ids: Path | None,
    chat: bool,
    no_heads: bool,
    device: int,
    threads: int | None,
    no_verify: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Continue a prompt with ARTIFACT."""
    if (prompt is None) == (prompt_ids is None):
        raise click.UsageError("give either --prompt or --prompt-ids")
    if chat and prompt is None:
        raise click.UsageError("--chat needs --prompt; ids are given with the template already applied")
    from dspark_compiler.runtime.engine import load
    from dspark_compiler.runtime.sampling import SamplingParams

    params = SamplingParams(**sampling)
    ids = None if prompt_ids is None else read_ids(prompt_ids)
    engine = load(artifact, verify=not no_verify, threads=threads, heads=not no_heads, device=device)
    if ids is not None:
        stream = engine.generate(ids, params)
    elif chat:
        stream = engine.chat([{"role": "user", "content": prompt}], params)
    else:
        stream = engine.generate(prompt or "", params)
    if as_json:
        _print_result(stream, engine.executor.device.peak_memory_bytes)
    else:
        _print_stream(stream, has_text=engine.tokenizer is not None)


def read_ids(path: Path) -> list[int]:
    """A JSON list of token ids.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"--prompt-ids {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"--prompt-ids {path}: not valid JSON ({error})") from None
    if not isinstance(data, list) or not all(type(item) is int for item in data):
        raise InputError(f"--prompt-ids {path}: must hold a list of token ids, such as [1, 2, 3]")
    return data


def _print_stream(stream: "Stream", *, has_text: bool) -> None:
    for piece in stream:
        click.echo(piece, nl=False)  # flushes
    # Without a tokenizer there is no text to show.
    click.echo("" if has_text else " ".join(map(str, stream.completion.tokens)))


def _print_result(stream: "Stream", peak_memory_bytes: Callable[[], int]) -> None:
    for _ in stream:
        pass
    result = stream.completion
    print_json(
        {
            "prompt_tokens": result.prompt_tokens,
            "tokens": result.tokens,
            "text": result.text,
            "ttft_ms": result.ttft_ms,
            "tpot_ms": result.tpot_ms,
            "rounds": result.rounds,
            "accepted_length": result.accepted_length,
            "kv_slots": result.kv_slots,
            "peak_memory_bytes": peak_memory_bytes(),
        }
    )
