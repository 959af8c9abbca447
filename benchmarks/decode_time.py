"""Time of a decoded token in long sequences, artifact by artifact, in turns: does it grow, and what does eviction cost?

Each argument is ARTIFACT@LENGTH: the artifact is brought to LENGTH tokens of real text, then all of them decode blocks
of tokens, one block each, over and over. A block is as many tokens as one eviction frees, so that each holds one
eviction. The first argument is what the others are compared with.

    python benchmarks/decode_time.py whole.dspark@1000 tova.dspark@2048 tova.dspark@32000 --json decode-time.json
"""

import json
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np

from dspark_compiler.artifact import Artifact
from dspark_compiler.bench.report import installed_versions
from dspark_compiler.compare.compiled import decode_first
from dspark_compiler.compare.origin import tokenizer_of
from dspark_compiler.machine.processor import processor
from dspark_compiler.runtime.executor import Executor


class Contestant:
    """An artifact in the middle of a sequence."""

    def __init__(self, spelled: str, text: list[int], tokens: int) -> None:
        self.tokens = tokens
        path, _, length = spelled.rpartition("@")
        self.artifact, self.length = Artifact.open(path, verify=False), int(length)
        self.name = f"{Path(path).name}@{length}"
        self.executor = Executor(self.artifact)
        prompt = [text[i % len(text)] for i in range(self.length)]
        self.token = int(self.executor.prefill(0, prompt, 0, 0).argmax())
        self.start = self.length
        self.milliseconds: list[float] = []
        self.evicting: list[float] = []  # of that, spent in ``evict``
        self._evict, self.executor._evict = self.executor._evict, self._timed_evict

    def _timed_evict(self, **inputs: object) -> None:
        began = time.perf_counter()
        self._evict(**inputs)
        self.evicting.append((time.perf_counter() - began) * 1e3)

    def block(self) -> None:
        """Decodes a block and keeps the time of one token."""
        began = time.perf_counter()
        for position in range(self.length, self.length + self.tokens):
            self.token = int(decode_first(self.executor, self.token, position).argmax())
        self.milliseconds.append((time.perf_counter() - began) * 1e3 / self.tokens)
        self.length += self.tokens

    def to_json(self) -> dict[str, object]:
        """The numbers."""
        kv = self.artifact.manifest.kv
        return {
            "name": self.name,
            "policy": None if kv.pruning is None else kv.pruning.policy,
            "slots": kv.slots,
            "kv_dtype": kv.dtype,
            "length": self.start,
            "ms_per_token": {"p50": statistics.median(self.milliseconds), "blocks": self.milliseconds},
            "evicting_share": sum(self.evicting) / (sum(self.milliseconds) * self.tokens),
            "cache_bytes": self.executor.cache_bytes,
        }


@click.command()
@click.argument("contestants", nargs=-1, required=True, metavar="ARTIFACT@LENGTH…")
@click.option("--text", type=click.Path(path_type=Path), required=True, help="What the sequences are made of.")
@click.option("--blocks", default=12, show_default=True, help="Blocks each decodes, after one to warm up.")
@click.option("--block", default=64, show_default=True, help="Tokens of a block.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), required=True)
def main(contestants: tuple[str, ...], text: Path, blocks: int, block: int, json_file: Path) -> None:
    """Measure, compare with the first, and write what came out."""
    first = Artifact.open(contestants[0].rpartition("@")[0], verify=False)
    tokenizer = tokenizer_of(first)
    assert tokenizer is not None
    ids = tokenizer.encode(text.read_text(encoding="utf-8")[:200_000])
    made = []
    for spelled in contestants:
        made.append(Contestant(spelled, ids, block))
        click.echo(f"{made[-1].name}: ready")
    for contestant in made:
        contestant.block()
        contestant.milliseconds.clear()
        contestant.evicting.clear()
    order = np.arange(len(made))
    for turn in range(blocks):
        for index in np.roll(order, turn):
            made[index].block()
    rows = [contestant.to_json() for contestant in made]
    base = made[0].milliseconds
    for row, contestant in zip(rows, made, strict=True):
        ratios = [mine / theirs for mine, theirs in zip(contestant.milliseconds, base, strict=True)]
        row["times_first"] = statistics.median(ratios)
        click.echo(f"{row['name']:45} {row['ms_per_token']['p50']:8.2f} ms  {row['times_first']:.3f} times the first")
        click.echo(f"{'':45} {row['evicting_share']:8.1%} evicting")
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": str(processor()),
        "versions": installed_versions(),
        "block": block,
        "rows": rows,
    }
    json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
