"""Latency by position, drawn."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from dspark_compiler.bench.harness import Measurements
from dspark_compiler.bench.report import step_times_ms
from dspark_compiler.bench.roofline import token_traffic


def plot(measured: Measurements, path: Path) -> None:
    """Draws the median time of each token over its position, one line a contestant, and the memory limit.

    Raises:
        OSError: the file cannot be written.
    """
    prompt_len = len(measured.prompts[0])
    figure, axes = plt.subplots(figsize=(9, 5))
    for contender in measured.contenders:
        medians = np.median(step_times_ms(contender), axis=0)
        positions = prompt_len + 1 + np.arange(len(medians))
        axes.plot(positions, medians, label=contender.name, linewidth=1.2)
    traffic = token_traffic(measured.artifact.manifest)
    limit = [traffic.bytes_at(float(position)) / measured.bandwidth * 1e3 for position in positions]
    axes.plot(
        positions, limit, label=f"memory limit at {measured.bandwidth / 1e9:.1f} GB/s", color="grey", linestyle="--"
    )
    axes.set_xlabel("position in tokens")
    axes.set_ylabel("time of a token in ms (median over prompts)")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{measured.artifact.manifest.model.name} {measured.artifact.manifest.dtype}")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
