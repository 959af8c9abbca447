"""Which products stream their weights, and which multiply in tiles: sums have other bits then."""

from dspark_compiler.graph.program import EntryKind, EntryPoint
from dspark_compiler.schedules.simt.row_schedule import FEW_ROWS


def streams(entry: EntryPoint, rows: int) -> bool:
    """Whether a product of so many rows of x streams its weight.

    Verify does as decode does, however many rows it has: a token's bits are the same from both, alone or in a batch.
    """
    return (entry.batch if entry.kind in (EntryKind.DECODE, EntryKind.VERIFY) else rows) <= FEW_ROWS
