"""What a benchmark says: the JSON form and the tables."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from dspark_compiler.artifact import Artifact
from dspark_compiler.artifact.amd import find_hip
from dspark_compiler.artifact.nvidia import find_driver
from dspark_compiler.artifact.vulkan import find_vulkan
from dspark_compiler.bench.contestants import COMPILED
from dspark_compiler.bench.harness import Contender, Measurements
from dspark_compiler.bench.roofline import token_traffic
from dspark_compiler.bench.verdict import Parting
from dspark_compiler.machine.processor import processor
from dspark_compiler.runtime.ort_provider import choose_provider

if TYPE_CHECKING:
    from rich.table import Table

_VERSIONED = ("dspark-compile", "apache-tvm", "torch", "transformers", "onnxruntime-gpu")


def step_times_ms(contender: Contender) -> list[list[float]]:
    """Time of each token after the first, one list a prompt."""
    return [np.diff(generation.times_ms).tolist() for generation in contender.generations]


def report(measured: Measurements, parted: Sequence[Parting]) -> dict[str, Any]:
    """The result of ``dspark bench --json``.

    Times of tokens are taken over all tokens after the first of all prompts; a speed-up is the ratio of their
    medians. With heads it is the median over prompts of the ratio of the times of all of them, since more tokens come
    from fast rounds than from slow ones.
    ``tokens_identical`` is null where there was nobody to compare with. Where heads draft, ``roofline_fraction`` is
    null: its limit is that of steps of one token.
    """
    manifest = measured.artifact.manifest
    runs = [_run(contender, measured) for contender in measured.contenders]
    return {
        "model": manifest.model.name,
        "target": manifest.target.kind,
        "dtype": manifest.dtype,
        "device": device_of(measured.artifact),
        "versions": installed_versions(),
        "prompt_len": len(measured.prompts[0]),
        "new_tokens": len(measured.contenders[0].generations[0].tokens),
        "repeats": len(measured.prompts),
        "threads": measured.threads,
        "limit": "all cores read" if _kind_of_device(measured.artifact) == "cpu" else "the GPU copies",
        "read_bandwidth_bytes_per_s": measured.bandwidth,
        "busy_cores_at_rest": measured.busy_cores,
        "runs": runs,
        "speedup": _speedups(measured.contenders, by_prompt=manifest.heads is not None),
        "tokens_identical": not parted if len(runs) > 1 else None,
        "partings": [str(parting) for parting in parted],
    }


def device_of(artifact: Artifact) -> str:
    """What an artifact runs on here, for people."""
    kind = _kind_of_device(artifact)
    if kind == "cuda" and (driver := find_driver()) is not None and artifact.device < len(driver.gpus):
        gpu = driver.gpus[artifact.device]
        return f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB"
    if kind == "vulkan" and (vulkan := find_vulkan()) is not None and artifact.device < len(vulkan.devices):
        device = vulkan.devices[artifact.device]
        return f"{device.name}, {device.driver}, {device.memory_bytes / 2**30:.0f} GiB"
    if kind == "rocm" and (hip := find_hip()) is not None and artifact.device < len(hip.gpus):
        amd = hip.gpus[artifact.device]
        return f"{amd.name}, {amd.memory_bytes / 2**30:.0f} GiB"
    return str(processor())


def _kind_of_device(artifact: Artifact) -> str:
    kind = artifact.manifest.target.kind
    return choose_provider(artifact).device if kind == "onnxruntime" else kind


def _speedups(contenders: Sequence[Contender], *, by_prompt: bool) -> dict[str, float]:
    """Of the artifact over each other contestant."""
    # The times to compare, one for each prompt or one in all.
    times: dict[str, list[float]] = {}
    for contender in contenders:
        steps = step_times_ms(contender)
        times[contender.name] = [sum(s) for s in steps] if by_prompt else [float(np.median(np.concatenate(steps)))]
    mine = np.array(times.pop(COMPILED))
    return {name: float(np.median(np.array(theirs) / mine)) for name, theirs in times.items()}


def installed_versions() -> dict[str, str]:
    """Versions of what the contestants are made of, as far as installed."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _run(contender: Contender, measured: Measurements) -> dict[str, Any]:
    first = [generation.times_ms[0] for generation in contender.generations]
    steps = [step for prompt in step_times_ms(contender) for step in prompt]
    prompt_len, new_tokens = len(measured.prompts[0]), len(contender.generations[0].tokens)
    # The step that makes token i attends to prompt_len + i tokens, i from 1 to new_tokens - 1.
    needed = token_traffic(measured.artifact.manifest).bytes_at(prompt_len + new_tokens / 2)
    speculates = contender.name == COMPILED and measured.artifact.manifest.heads is not None
    tpot = _percentiles(steps)
    return {
        "name": contender.name,
        "ttft_ms": _percentiles(first),
        "tpot_ms": tpot,
        "tokens_per_s": len(steps) * 1e3 / sum(steps),
        "accepted_length": _accepted_length(contender) if speculates else None,
        "peak_memory_bytes": contender.peak_memory_bytes,
        "roofline_fraction": None if speculates else _roofline_fraction(needed, contender),
        "prepare_s": contender.prepare_s,
        "options": dict(contender.options),
    }


def _accepted_length(contender: Contender) -> float:
    """Tokens a step, after the first token."""
    made = sum(len(generation.tokens) - 1 for generation in contender.generations)
    return made / sum(generation.steps - 1 for generation in contender.generations)


def _roofline_fraction(needed: float, contender: Contender) -> float:
    """Least time for the bytes a step reads over its time: the median over prompts, each against its own bandwidth."""
    times = [float(np.median(steps)) / 1e3 for steps in step_times_ms(contender)]
    return float(np.median([needed / rate / t for rate, t in zip(contender.bandwidths, times, strict=True)]))


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    p50, p90 = np.percentile(values, (50, 90))
    return {"p50": float(p50), "p90": float(p90)}


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 1000 else f"{milliseconds:.1f}"


def tables(result: Mapping[str, Any]) -> Iterable["Table"]:
    """The same for people: the measurements, then what each contestant ran with."""
    from rich.box import SIMPLE
    from rich.table import Table

    title = (
        f"{result['model']} {result['dtype']}, {result['prompt_len']} prompt and {result['new_tokens']} new tokens, "
        f"{result['repeats']} prompts, {result['threads']} threads"
    )
    caption = f"{result['device']}; limit: {result['limit']} {result['read_bandwidth_bytes_per_s'] / 1e9:.1f} GB/s"
    table = Table(
        title=title, caption=caption, box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )  # lean enough for 80 columns
    table.add_column("", no_wrap=True)
    times = ("first token\nms p50 / p90", "next tokens\nms p50 / p90", "tokens\n/s")
    drafts = any(run["accepted_length"] is not None for run in result["runs"])
    heads = ["tokens\na step"] if drafts else []
    for heading in (*times, "of the\nlimit", *heads, "memory\nMB", "speed-\nup over"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in result["runs"]:
        speedup = result["speedup"].get(run["name"])
        table.add_row(
            run["name"],
            *(f"{_short(run[time]['p50'])} / {_short(run[time]['p90'])}" for time in ("ttft_ms", "tpot_ms")),
            f"{run['tokens_per_s']:.1f}",
            "" if run["roofline_fraction"] is None else f"{run['roofline_fraction']:.0%}",
            *(["" if run["accepted_length"] is None else f"{run['accepted_length']:.2f}"] if drafts else []),
            f"{run['peak_memory_bytes'] / 1e6:.0f}",
            "" if speedup is None else f"{speedup:.2f}x",
        )
    yield table
    settings = Table("", "ready after", "with", box=SIMPLE)
    for run in result["runs"]:
        options = ", ".join(f"{name} {value}" for name, value in run["options"].items())
        settings.add_row(run["name"], f"{run['prepare_s']:.1f} s", options)
    yield settings
