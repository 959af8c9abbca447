"""What can be chosen about a packed linear kernel, the choice without a record, and what is worth measuring."""

from dataclasses import asdict, dataclass

import tvm

from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.isa import VectorIsa

_WORKLOAD = "dspark.linear"  # function attribute: the workload, for the tuner
_AHEAD = 32  # steps of k a prefetch asks for ahead, where it is tried


@dataclass(frozen=True)
class LinearWorkload:
    """One packed product: x[rows, depth] @ W[features, depth].T, W stored as ``weight_dtype``.

    That is a type, or the tag of a WeightFormat, whose scales are stored as ``scale_dtype``.
    """

    rows: int
    features: int
    depth: int
    weight_dtype: str = "float32"
    gated: bool = False  # the first half of the features gates the second (gated_linear.py)
    scale_dtype: str = "float32"

    @property
    def quantized(self) -> bool:
        """Whether the weight is codes with scales."""
        return WeightFormat.parse(self.weight_dtype) is not None


@dataclass(frozen=True)
class LinearSchedule:
    """How a packed linear kernel cuts its loops; none of it changes a result."""

    rows: int  # height of the register tile
    panels: int = 1  # panels it covers: more sums under way at once, fewer and longer tasks
    prefetch: int = 0  # steps of k ahead of which weights are asked for; 0 leaves that to the hardware


def packed_shape(features: int, depth: int, isa: VectorIsa) -> tuple[int, int, int]:
    """Shape of W [features, depth] after packing."""
    return (-(-features // isa.panel), depth, isa.panel)


def default_schedule(work: LinearWorkload, isa: VectorIsa) -> LinearSchedule:
    """The schedule without a record: tall tiles, so that a panel comes from memory as few times as can be."""
    # Two streams at once come a little faster, where both panels' sums fit the registers.
    panels = 2 if work.gated and 2 * work.rows <= isa.max_rows else 1
    if work.quantized and not work.gated:
        # A chain of sums is slower than their codes come; there must be some chains a time.
        panels = min(4, max(1, isa.max_rows // 2 // work.rows))
    # Several short streams are more than the hardware's prefetch likes.
    ahead = _AHEAD if work.quantized and work.rows == 1 else 0
    return LinearSchedule(_tile_rows(work.rows, isa.max_rows), panels, ahead)


def candidate_schedules(work: LinearWorkload, isa: VectorIsa) -> list[LinearSchedule]:
    """What is worth measuring, the default first: tiles that fit the registers and cut the rows evenly."""
    panels = packed_shape(work.features, work.depth, isa)[0]
    fewest = -(-work.rows // isa.max_rows)
    heights = {-(-work.rows // tiles) for tiles in range(fewest, min(fewest + 2, work.rows) + 1)}
    heights.add(_tile_rows(work.rows, isa.max_rows))
    widths = [n for n in ((1, 2) if work.gated else (1, 2, 3, 4) if work.quantized else (1, 2, 4)) if n <= panels]
    shapes = [(rows, n) for rows in sorted(heights, reverse=True) for n in widths if rows * n <= isa.max_rows]
    default = default_schedule(work, isa)
    every = [LinearSchedule(rows, n, ahead) for ahead in (0, _AHEAD) for rows, n in shapes]
    return [default, *(schedule for schedule in every if schedule != default)]


def tag(function: tvm.tirx.PrimFunc, work: LinearWorkload) -> tvm.tirx.PrimFunc:
    """The function with the workload it was made for written on it."""
    return function.with_attr(_WORKLOAD, asdict(work))


def workload_of(function: tvm.tirx.PrimFunc) -> LinearWorkload | None:
    """What a linear template was asked for when it made ``function``; None if something else made it."""
    fields = function.attrs.get(_WORKLOAD)
    if fields is None:
        return None
    rows, features, depth = (int(fields[name]) for name in ("rows", "features", "depth"))
    weight, scale = str(fields["weight_dtype"]), str(fields["scale_dtype"])
    return LinearWorkload(rows, features, depth, weight, bool(fields["gated"]), scale)


def _tile_rows(rows: int, limit: int) -> int:
    """Rows of the register tile: the whole if it fits, else the divisor, or least ragged height, near the limit."""
    if rows <= limit:
        return rows
    candidates = range(limit, limit // 2, -1)
    exact = [height for height in candidates if rows % height == 0]
    return exact[0] if exact else min(candidates, key=lambda height: -rows % height)
