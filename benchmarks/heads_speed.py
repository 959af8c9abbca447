"""Tokens per second with decode heads over without, prompt by prompt, in turns.

The same artifact answers each prompt twice, once with its heads and once plainly; which comes first alternates. Greedy
answers must be equal token for token. Each set of prompts is NAME=FILE, in any form ``dspark heads eval`` takes.

    python benchmarks/heads_speed.py smollm2.dspark --set gsm8k=test.jsonl --set mt-bench=question.jsonl --json out.json
"""

import json
import random
import statistics
from datetime import UTC, datetime
from pathlib import Path

import click

from dspark_compiler.artifact import Artifact
from dspark_compiler.bench.report import installed_versions
from dspark_compiler.machine.bandwidth import ReadBandwidth
from dspark_compiler.machine.processor import processor
from dspark_compiler.runtime.chat import load_chat_template
from dspark_compiler.runtime.engine import Engine
from dspark_compiler.runtime.sampling import SamplingParams
from dspark_compiler.runtime.sequence import Completion
from dspark_compiler.training.prompts import encode_prompts, read_prompts

_SHORTEST = 16  # tokens; the time of a shorter answer says little


def answer(engine: Engine, ids: list[int], params: SamplingParams) -> Completion:
    """One whole answer."""
    stream = engine.generate(ids, params)
    for _ in stream:
        pass
    return stream.completion


def compare(
    engines: dict[str, Engine], prompts: list[list[int]], new_tokens: int, temperature: float
) -> dict[str, object]:
    """Answers to all prompts with and without heads, and what the heads gained."""
    ratios, lengths, times, differing = [], [], dict.fromkeys(engines, 0.0), 0
    for number, ids in enumerate(prompts):
        params = SamplingParams(max_new_tokens=new_tokens, temperature=temperature)
        found = {}
        for name in list(engines)[:: 1 if number % 2 else -1]:
            found[name] = answer(engines[name], ids, params)
        if any(len(completion.tokens) < _SHORTEST for completion in found.values()):
            continue
        ratios.append(found["plain"].tpot_ms / found["heads"].tpot_ms)
        lengths.append(found["heads"].accepted_length)
        for name, completion in found.items():
            times[name] += completion.tpot_ms
        differing += temperature == 0 and found["plain"].tokens != found["heads"].tokens
    return {
        "temperature": temperature,
        "prompts": len(ratios),
        "speedup": times["plain"] / times["heads"],
        "speedup_by_prompt": {"p50": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "ms_per_token": {name: time / len(ratios) for name, time in times.items()},
        "accepted_length": statistics.fmean(lengths),
        "prompts_that_differ": differing if temperature == 0 else None,
    }


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, required=True, metavar="NAME=FILE", help="Prompts; repeatable.")
@click.option("--prompts", default=16, show_default=True, help="Of each set, drawn at random.")
@click.option("--new-tokens", default=160, show_default=True)
@click.option("--temperatures", default="0,1", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), required=True)
def main(
    artifact: Path,
    sets: tuple[str, ...],
    prompts: int,
    new_tokens: int,
    temperatures: str,
    seed: int,
    json_file: Path,
) -> None:
    """Measure, print, and write what came out."""
    opened = Artifact.open(artifact, verify=False)
    engines = {"heads": Engine(opened), "plain": Engine(opened, heads=False)}
    tokenizer = engines["heads"].tokenizer
    assert tokenizer is not None, "prompts are text"
    rows = []
    for spelled in sets:
        name, _, file = spelled.partition("=")
        found = read_prompts([Path(file)])
        random.Random(seed).shuffle(found)
        room = opened.manifest.max_seq_len - new_tokens
        ids = encode_prompts(found[:prompts], tokenizer, load_chat_template(opened), room)
        for engine in engines.values():
            answer(engine, ids[0], SamplingParams(max_new_tokens=8))
        for temperature in map(float, temperatures.split(",")):
            row = {"set": name} | compare(engines, ids, new_tokens, temperature)
            rows.append(row)
            click.echo(
                f"{name:12} temperature {temperature:g}: {row['speedup']:.2f}x "
                f"(of a prompt {row['speedup_by_prompt']['min']:.2f} to {row['speedup_by_prompt']['max']:.2f}), "
                f"{row['accepted_length']:.2f} tokens a round, differ: {row['prompts_that_differ']}"
            )
    times = opened.manifest.heads and opened.manifest.heads.times
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": str(processor()),
        "bandwidth_gb_s": round(ReadBandwidth().measure() / 1e9, 1),
        "versions": installed_versions(),
        "artifact": artifact.name,
        "dtype": opened.manifest.dtype,
        "step_times_ms": None
        if not times
        else {"decode": times.decode_ms, "draft": times.draft_ms} | {f"verify_{t.tokens}": t.ms for t in times.verify},
        "new_tokens": new_tokens,
        "rows": rows,
    }
    json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
