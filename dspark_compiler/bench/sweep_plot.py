"""A sweep, drawn: quality against memory, a panel a task, a line a policy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from dspark_compiler.bench.tasks import TASKS


def plot_sweep(document: Mapping[str, Any], path: Path) -> None:
    """Draws what ``sweep`` returned. Lines end at the unpruned artifact, which a dashed line continues.

    Raises:
        OSError: the file cannot be written.
    """
    unpruned, *rows = document["rows"]
    tasks = list(unpruned["results"])
    figure, panels = plt.subplots(1, len(tasks), figsize=(6.5 * len(tasks), 5), squeeze=False)
    for axes, task in zip(panels[0], tasks, strict=True):
        metric = TASKS[task].metric
        base = unpruned["results"][task][metric]
        axes.axhline(base, color="grey", linestyle="--", linewidth=1, label="unpruned")
        for policy in dict.fromkeys(row["policy"] for row in rows):
            mine = [unpruned, *(row for row in rows if row["policy"] == policy and row["results"])]
            memory = [row["cache_bytes"] / 2**20 for row in mine]
            axes.plot(memory, [row["results"][task][metric] for row in mine], label=policy, marker="o", markersize=4)
        axes.set_xlim(left=0)
        axes.set_xlabel("cache in MiB")
        better = "higher" if TASKS[task].higher_is_better else "lower"
        axes.set_ylabel(f"{metric.replace('_', ' ')} ({better} is better)")
        axes.set_title(task)
    panels[0][0].legend()
    figure.suptitle(f"{document['model']} {document['dtype']}, {document['max_seq_len']} tokens")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
