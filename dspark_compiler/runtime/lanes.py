"""What all artifacts that run on one device of this process share: its stream, and the memory TVM's allocator keeps.

What calls need in between is the allocator's and goes back to it with each. Graphs have the addresses: whenever one is
launched it writes there, whoever has the memory by then. Calls do not mind, on one stream, where none runs beside
another; whoever keeps memory of the allocator's for longer must have the graphs of all artifacts captured anew.
"""

from dataclasses import dataclass

from dspark_compiler.runtime.gpu import GpuRuntime

_LANES: dict[tuple[int, int], "Lane"] = {}


@dataclass
class Lane:
    """One device of this process.

    Attributes:
        stream: what everything is put on.
        epoch: counts how often memory that graphs write to may have got another use; they are of no use any more then.
    """

    cuda: GpuRuntime
    stream: int
    epoch: int = 0


def lane_of(cuda: GpuRuntime, where: tuple[int, int]) -> Lane:
    """That of a device, DLPack's type and number; ``cuda`` is an interface to it."""
    if where not in _LANES:
        _LANES[where] = Lane(cuda, cuda.stream())
    return _LANES[where]


def make_way(where: tuple[int, int]) -> None:
    """Has graphs captured anew, once all that is on the stream is done: an artifact's constants are about to be made.

    They stay in the allocator's memory as long as the artifact's code does.
    """
    lane = _LANES.get(where)
    if lane is not None:
        lane.cuda.synchronize(lane.stream)
        lane.epoch += 1
