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


def candidate_schedules(work: LinearWorkload) -> list[StreamSchedule]:
    """What is worth measuring, the default first."""
    default = default_stream_schedule(work)
    shapes = ((1, 8, 4), (1, 8, 8), (1, 16, 4), (1, 16, 2), (1, 8, 2), (1, 4, 8), (1, 4, 4), (2, 8, 4))
    every = [StreamSchedule(*shape) for shape in shapes]
    return [default, *(schedule for schedule in every if schedule != default)]
