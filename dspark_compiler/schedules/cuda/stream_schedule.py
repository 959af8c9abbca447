"""What can be chosen about a streaming linear kernel, the choice without a record, and what is worth measuring."""

from dataclasses import dataclass

from dspark_compiler.schedules.linear_schedule import LinearWorkload


@dataclass(frozen=True)
class StreamSchedule:
    """How a streaming linear kernel cuts W, whatever the rows of x, so that no row's sums depend on their number."""

    stripes: int  # of 16 features that a block computes
    warps: int  # of a block, which share the stripes' depth
    ahead: int  # tiles of each stripe that a warp has asked for before it uses the first
    fetch: bool = False  # whether a block asks for all of its stripes, as far as the L2, before it waits for x


def default_stream_schedule(work: LinearWorkload) -> StreamSchedule:
    """The schedule without a record."""
    return StreamSchedule(1, 8, 4)
