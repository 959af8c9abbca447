"""Memory of a process that generates a hundred thousand tokens, with a budget of slots and without.

A tiny Llama with random weights is compiled both ways; what is compared is memory, not text. Each line of the figure is
a process of its own.

    python benchmarks/memory.py --json memory.json --plot memory.png
"""

import ctypes
import gc
import json
import multiprocessing
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np

_TOKENS = 100_000
_STEP = 2_000
_BUDGET = 512


def bytes_in_use() -> int:
    """What the process has allocated and not freed, as the C library counts it."""

    class Info(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in (
                *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks"),
                *("fordblks", "keepcost"),
            )
        ]

    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Info
    gc.collect()
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def generate(path: str) -> dict[str, object]:
    """Greedy generation from one token on; memory in use every so many tokens."""
    from dspark_compiler.artifact import Artifact
    from dspark_compiler.runtime.executor import Executor
    from dspark_compiler.runtime.memory import peak_memory_bytes

    executor = Executor(Artifact.open(path, verify=False), threads=1)  # so small a model is slower with more
    tokens, positions, lengths, counts = np.zeros((4, 1), np.int64)
    counts[0] = 1
    samples = np.zeros((_TOKENS // _STEP + 1, 2), np.int64)  # a list would grow, and be measured
    bytes_in_use()
    while positions[0] < _TOKENS:
        if positions[0] % _STEP == 0:
            samples[positions[0] // _STEP] = positions[0], bytes_in_use()
        tokens[0] = 3 + int(executor.decode(tokens, positions, lengths, counts)[0, 3:].argmax())
        positions[0] += 1
        lengths[0] += 1
    samples[-1] = positions[0], bytes_in_use()
    return {"cache_bytes": executor.cache_bytes, "peak_bytes": peak_memory_bytes(), "in_use": samples.tolist()}


def compile_both(folder: Path) -> dict[str, Path]:
    """The tiny model with a budget and without."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dspark_compiler import compile

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_TOKENS + 1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    options = {"max_seq_len": _TOKENS + 1, "prefill_widths": (8,), "check": False}
    pruned = {"kv_budget": _BUDGET, "kv_policy": "h2o"}
    compile(folder / "tiny", output=folder / "pruned.dspark", **options, **pruned)
    compile(folder / "tiny", output=folder / "whole.dspark", **options)
    return {f"{_BUDGET} slots, h2o": folder / "pruned.dspark", "a slot for each token": folder / "whole.dspark"}


@click.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path), required=True)
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), required=True)
def main(json_file: Path, plot_file: Path) -> None:
    """Measure, write and draw."""
    from dspark_compiler.bench.report import installed_versions
    from dspark_compiler.machine.processor import processor

    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in compile_both(Path(folder)).items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                runs[name] = pool.apply(generate, (str(path),))
            click.echo(f"{name}: cache {runs[name]['cache_bytes']} bytes")
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": str(processor()),
        "versions": installed_versions(),
        "tokens": _TOKENS,
        "runs": runs,
    }
    json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw(runs, plot_file)


def draw(runs: dict[str, dict], path: Path) -> None:
    """Memory in use over tokens."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4))
    for name, run in runs.items():
        tokens, used = zip(*run["in_use"], strict=True)
        axes.plot(tokens, [value / 2**20 for value in used], label=name)
    axes.set_xlabel("generated tokens")
    axes.set_ylabel("memory in use, MiB")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
