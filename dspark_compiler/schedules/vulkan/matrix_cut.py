"""How products of few rows by cooperative matrices are cut: subgroups, their steps, rows of the weight.

Nothing of how the depth is cut depends on the rows of x, so each row gets the same bits whatever rows come with it.
"""

from dataclasses import dataclass, replace

from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.simt.stream_linear import MOST_ROWS, form_of
from dspark_compiler.schedules.vulkan.matrices import FEW, SIDE, SUBGROUP

STEP = 64  # of the depth that a subgroup takes at once: two numbers of a row a thread
TILES = STEP // SIDE
_MOST_SPLITS = 8  # subgroups of a work group
_MOST_LINES = 32  # sixteens of rows of the weight, by all subgroups, as a rule
_MOST_HELD = 32  # matrices of the weight that a subgroup has under way, as a rule
# Where that brings the work groups of several rows of x from more than these to as many: those of two products in a
# row have a place each on a large device then, and nobody's weight is asked for only when the others' have been used.
_MOST_BESIDE, _WIDE_LINES, _WIDE_HELD = 66, 48, 48
# Products of many work groups, one after the other: two fit on a multiprocessor, so that one begins while one ends.
_MANY, _FEW_LINES = 1000, 2
_BUSY = 120  # work groups that keep a large device busy
_BUSY_WITH_ROWS = 60  # and with several rows of x, all of which each of them brings
STEP_WORDS = STEP // 2  # of a step of x as pairs of float16
PITCH_OF_X = STEP_WORDS + 4  # between its columns: they begin in different banks
LEAST_PITCH = 4  # where there is one: the others, which are nobody's, are what lies behind it
PITCH = FEW + 4  # of a matrix of sums
REGION, SUMS = FEW * PITCH_OF_X, SIDE * PITCH  # words of a subgroup's x, of a matrix of sums
CODES_WORDS = 2 * SIDE * PITCH_OF_X  # of a subgroup's codes that have been decoded, as float16
_BYTES = 4


@dataclass(frozen=True)
class MatrixCut:
    """How a weight is cut: ``splits`` subgroups of ``steps`` each share the depth of ``blocks`` sixteens of features.

    Gated, these are as many of either half.
    """

    splits: int
    steps: int
    blocks: int
    halves: int
    per: int = 1  # steps of a weight that come together: of codes, what a lane's access has

    @staticmethod
    def of(work: LinearWorkload) -> "MatrixCut | None":
        """That of a product; None where sixteens do not divide it, or it is neither of float16 nor of plain codes."""
        halves, form = 2 if work.gated else 1, form_of(work)
        codes = form.format is not None and not form.format.offsets
        if not (form.tiled or codes) or work.features // halves % SIDE:
            return None
        all_steps, per = -(-work.depth // STEP), form.pieces
        steps = per * -(-all_steps // (per * _MOST_SPLITS))
        splits = -(-all_steps // steps)
        return MatrixCut(splits, steps, _blocks_of(work, halves, splits, steps, per), halves, per)

    @property
    def lines(self) -> int:
        """Matrices of sums of a subgroup."""
        return self.blocks * self.halves

    @property
    def ahead(self) -> int:
        """Steps of its weight that a subgroup has under way."""
        most = _WIDE_HELD if self.lines * self.splits > _MOST_LINES else _MOST_HELD
        return min(self.steps, self.per * max(1, most // (TILES * self.lines * self.per)))

    @property
    def chains(self) -> int:
        """Sums of a line that a subgroup has: two of a single one, where each product would wait for the one before."""
        return 2 if self.lines == 1 else 1

    @property
    def threads(self) -> int:
        """Of a work group."""
        return self.splits * SUBGROUP

    @property
    def words(self) -> int:
        """Of memory on the chip: parts of x and of codes, in the place of which come sums."""
        return self.splits * max(self.region, self.lines * SUMS)

    @property
    def region(self) -> int:
        """Words of a subgroup's x and codes."""
        return REGION + (CODES_WORDS if self.per > 1 else 0)

    @staticmethod
    def most_bytes(work: LinearWorkload) -> int:
        """Memory on the chip that a product takes, however many rows: all of them have to choose alike."""
        cuts = [MatrixCut.of(replace(work, rows=rows)) for rows in (1, MOST_ROWS)]
        return max(cut.shared_bytes for cut in cuts if cut is not None)

    @property
    def shared_bytes(self) -> int:
        """Memory it takes on the chip."""
        return (self.words + self.splits * MOST_ROWS) * _BYTES


def _blocks_of(work: LinearWorkload, halves: int, splits: int, steps: int, per: int) -> int:
    """Sixteens of features of a work group."""
    features, busy = work.features // halves, _BUSY if work.rows == 1 else _BUSY_WITH_ROWS
    blocks, most = 1, min(_MOST_LINES // splits, _MOST_HELD // (TILES * per))
    if features // (_FEW_LINES // halves * SIDE) >= _MANY:
        most = _FEW_LINES
    while 2 * blocks * halves <= most and features // (2 * blocks * SIDE) >= busy:
        blocks *= 2
    if work.rows == 1 or features <= blocks * SIDE * _MOST_BESIDE:
        return blocks
    fewer = -(-features // (SIDE * _MOST_BESIDE))
    lines = fewer * halves
    fits = lines * splits <= _WIDE_LINES and lines * TILES * steps <= _WIDE_HELD
    return fewer if fits and features // (fewer * SIDE) >= busy else blocks
