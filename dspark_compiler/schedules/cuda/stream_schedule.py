"""What can be chosen about a streaming linear kernel, the choice without a record, and what is worth measuring."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StreamSchedule:
    """How a streaming linear kernel cuts W; the number of rows of x has no part in it, so no row's sums depend on it."""

    stripes: int  # of 16 features that a block computes
    splits: int  # blocks of a cluster that share the stripes' depth
    warps: int  # of a block that share the block's part of it
    ahead: int  # tiles of each stripe that a warp has asked for before it uses the first


def default_stream_schedule(work: object) -> StreamSchedule:
    return StreamSchedule(1, 1, 8, 4)
