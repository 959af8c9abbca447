"""A sweep as a table for people."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dspark_compiler.bench.tasks import TASKS

if TYPE_CHECKING:
    from rich.table import Table


def sweep_table(document: Mapping[str, Any]) -> "Table":
    """One row a variant: its cache, each task's metric, and by how much that is off the unpruned artifact's.

    A fraction's distance is in points, hundredths of the whole; another number's in hundredths of the unpruned one.
    """
    from rich.table import Table

    rows = document["rows"]
    tasks = list(rows[0]["results"])
    table = Table(title=f"{document['model']} {document['dtype']}, {document['max_seq_len']} tokens")
    table.add_column("policy", no_wrap=True)
    for heading in ("slots", "MiB", *(f"{task}\n{TASKS[task].metric.replace('_', ' ')}" for task in tasks)):
        table.add_column(heading, justify="right")
    for row in rows:
        if "error" in row:
            table.add_row(row["policy"], str(row["budget"]), "", row["error"])
            continue
        cells = [_cell(row, rows[0], task) for task in tasks]
        table.add_row(row["policy"] or "unpruned", str(row["budget"]), f"{row['cache_bytes'] / 2**20:.1f}", *cells)
    return table


def _cell(row: Mapping[str, Any], unpruned: Mapping[str, Any], task: str) -> str:
    value, base = (side["results"][task][TASKS[task].metric] for side in (row, unpruned))
    if row is unpruned:
        return f"{value:.4g}"
    if TASKS[task].higher_is_better:  # all of these are fractions
        return f"{value:.4g} ({100 * (value - base):+.1f} pts)"
    return f"{value:.4g} ({value / base - 1:+.1%})"
