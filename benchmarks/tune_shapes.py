"""Measures schedules for the linears of real models on this machine's GPU; needs no weights, and neither torch.

    python benchmarks/tune_shapes.py RECORDS                       # all models below, in bfloat16, int8 and int4-g128
    python benchmarks/tune_shapes.py RECORDS --models qwen3-8b,MODEL/config.json --forms bfloat16
    python benchmarks/tune_shapes.py RECORDS --report              # what is on record, without measuring

What is in RECORDS is not measured again: interrupting it costs the shape at hand. The records that ship are made by
the first line with ``dspark_compiler/schedules/records`` and ``--rows 1,8,16,32``.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from dspark_compiler.backends import create_backend
from dspark_compiler.commands.progress import make_progress
from dspark_compiler.machine.kernel_bench import open_bench
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.tune import TuningStep, linear_tasks, spend

_LAYER_ROWS = (1, 8, 16, 32, 512)  # decode, verifies, and the chunks a prompt is read in
_HEAD_ROWS = (1, 8, 16)  # a prefill wants the last row's logits alone
_STREAMED = 32  # quantized weights of more rows are widened first
BITS = {"bfloat16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model's linears, as its config.json has them."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    layers: int

    @staticmethod
    def named(model: str) -> "Shape":
        """That of a model below, or of a config.json as Hugging Face folders have it."""
        if model in SHAPES:
            return SHAPES[model]
        try:
            given = json.loads(Path(model).read_text(encoding="utf-8"))
            heads, hidden = given["num_attention_heads"], given["hidden_size"]
            return Shape(
                hidden,
                given["intermediate_size"],
                heads,
                given.get("num_key_value_heads", heads),
                given.get("head_dim") or hidden // heads,
                given["vocab_size"],
                given["num_hidden_layers"],
            )
        except (OSError, ValueError, KeyError) as error:
            known = ", ".join(SHAPES)
            raise SystemExit(
                f"error: --models {model}: neither of {known} nor a readable config.json: {error}"
            ) from error

    def linears(self) -> Iterator[tuple[LinearWorkload, int]]:
        """Each layer's, for one row, and how often a step calls it: projections of the same input are one."""
        yield LinearWorkload(1, (self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden), self.layers
        yield LinearWorkload(1, self.hidden, self.heads * self.head_dim), self.layers
        yield LinearWorkload(1, 2 * self.intermediate, self.hidden, gated=True), self.layers
        yield LinearWorkload(1, self.hidden, self.intermediate), self.layers


SHAPES = {
    "qwen3-0.6b": Shape(1024, 3072, 16, 8, 128, 151936, 28),
    "qwen3-1.7b": Shape(2048, 6144, 16, 8, 128, 151936, 28),
    "qwen3-4b": Shape(2560, 9728, 32, 8, 128, 151936, 36),
    "qwen3-8b": Shape(4096, 12288, 32, 8, 128, 151936, 36),
    "llama-3.1-8b": Shape(4096, 14336, 32, 8, 128, 128256, 32),
    "smollm2-135m": Shape(576, 1536, 9, 3, 64, 49152, 30),
}


def workloads(
    shapes: Sequence[Shape], forms: Sequence[str] = tuple(BITS), rows: Sequence[int] = _LAYER_ROWS
) -> dict[LinearWorkload, float]:
    """What the models compute, and how much memory a step reads for it."""
    found: dict[LinearWorkload, float] = {}
    for shape in shapes:
        head = LinearWorkload(1, shape.vocabulary, shape.hidden)
        for form in forms:
            cases = [(work, calls, count) for work, calls in shape.linears() for count in _LAYER_ROWS]
            if form != "int4":  # heads keep 8 bits
                cases += [(head, 1, count) for count in _HEAD_ROWS]
            for work, calls, count in cases:
                if count not in rows or (form != "bfloat16" and count > _STREAMED):
                    continue
                made = LinearWorkload(count, work.features, work.depth, form, work.gated)
                read = calls * work.features * work.depth * BITS[form] / 8
                found[made] = found.get(made, 0.0) + read
    return found


def measure(works: dict[LinearWorkload, float], folder: Path, arch: str | None) -> int:
    """Measures every candidate of every workload that is not on record; returns how many."""
    backend = create_backend("cuda", arch)
    if not backend.runs_here():
        raise SystemExit(f"error: this machine has nothing that runs {backend.spec.arch} code")
    records = Records(backend.spec.arch, [], folder)
    with make_progress() as progress, open_bench(backend) as bench:

        def step(found: TuningStep) -> None:
            progress("tune", found.done, found.total, str(found))

        progress("tune")
        tasks = linear_tasks(works, backend.linears, bench, records)
        return spend(tasks, sum(task.capacity for task in tasks), records, step)


def report(works: dict[LinearWorkload, float], folder: Path, arch: str) -> None:
    """Says of each shape: default, choice and best with their times, and how fast weights come."""
    from dspark_compiler.schedules.choice import choose_schedule
    from dspark_compiler.schedules.cuda.fragment_linears import FragmentLinears

    records, linears = Records(arch, [], folder), FragmentLinears(arch)
    ratios = []
    for work in sorted(works, key=lambda work: (work.weight_dtype, work.gated, work.features, work.depth, work.rows)):
        times = records.measured(work)
        default = linears.candidates(work)[0]
        if default not in times:
            continue
        chosen = choose_schedule(work, linears, records)
        best = min(times, key=times.__getitem__)
        ratios.append((times[best] / times[default], work))
        rate = work.features * work.depth * BITS[work.weight_dtype] / 8 / times[chosen] / 1e6
        gated = " gated" if work.gated else ""
        cuts = (f"{_cut(cut):10} {times[cut]:8.2f} us" for cut in (default, chosen, best))
        click.echo(
            f"{work.weight_dtype:8} {work.rows:3} x {work.depth:5} to {work.features:6}{gated:6}  {rate:5.2f} TB/s  "
            + "  ".join(cuts)
        )
    if ratios:
        worst, work = min(ratios, key=lambda pair: pair[0])
        click.echo(f"{len(ratios)} shapes; least speed of a default beside the best: {worst:.2f}, {work}")


def _cut(schedule: object) -> str:
    return ",".join(str(value) for value in vars(schedule).values())


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, metavar="RECORDS", help="folder the records are kept in")
    parser.add_argument("--models", default=",".join(SHAPES), help="names or paths of config.json, by commas")
    parser.add_argument("--forms", default=",".join(BITS), help="how weights are stored, by commas")
    parser.add_argument("--rows", default=",".join(map(str, _LAYER_ROWS)), help="of the input, by commas")
    parser.add_argument("--arch", help="such as sm_90a; default: this machine's")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(arguments)
    shapes = [Shape.named(name) for name in options.models.split(",")]
    works = workloads(shapes, options.forms.split(","), [int(rows) for rows in options.rows.split(",")])
    if not options.report:
        began = time.perf_counter()
        measured = measure(works, options.records, options.arch)
        click.echo(f"{measured} schedules of {len(works)} shapes measured in {time.perf_counter() - began:.0f} s")
    report(works, options.records, options.arch or create_backend("cuda", None).spec.arch)


if __name__ == "__main__":
    main(sys.argv[1:])
