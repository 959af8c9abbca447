"""How a call of few tokens is cut up, and what of it lies in the workspace."""

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda.attention_rows import Problem, Span
from dspark_compiler.schedules.cuda.attention_stages import STEP, stages_of
from dspark_compiler.schedules.cuda.floats import bit_length
from dspark_compiler.schedules.cuda.threads import WARP
from dspark_compiler.schedules.tir import Expr

FEW_TOKENS = 32
LINES = 4
ROUND = LINES * STEP
_BLOCKS = 512  # and no fewer than half of it: two for every multiprocessor of an H100 or H200, about
_MEMORY, _RESERVED = 227 * 1024, 1024  # bytes that a multiprocessor's blocks can have, and that each costs besides


@dataclass(frozen=True)
class DecodePlan:
    """How a call is cut up; chunks depend on heads and slots, not on the number of tokens."""

    parts: int  # chunks until they double
    chunks: int  # at most
    tiles: int  # 16-row tiles of queries a block
    blocks: int  # of tiles, that cover a head's rows
    stages: int  # of a line's ring

    @property
    def threads(self) -> int:
        """Threads a block."""
        return LINES * self.tiles * WARP

    def chunking(self, span: Span) -> "Chunking":
        """Chunks of a sequence, ``parts`` of them being more slots than are live."""
        return Chunking(T.Bind(bit_length(span.used // (ROUND * self.parts)) + (ROUND.bit_length() - 1)))


@dataclass(frozen=True)
class Chunking:
    """Chunks of 2^bits slots."""

    bits: Expr

    @property
    def size(self) -> Expr:
        """Slots a chunk."""
        return T.Bind(T.int32(1) << self.bits)

    def chunk_of(self, slot: Expr) -> Expr:
        """The chunk that has the slot."""
        return T.Bind(slot >> self.bits)

    def end(self, slots: Expr) -> Expr:
        """Chunks that hold the first ``slots`` slots."""
        return T.Bind((slots + (self.size - 1)) >> self.bits)


def decode_plan(problem: Problem) -> DecodePlan:
    """Chunks for two blocks a multiprocessor and more; rings as long as there is memory for."""
    shape = problem.shape
    parts = min(128, max(8, _BLOCKS // (shape.rows * shape.kv_heads)))
    # The call's own tokens may reach into one more.
    chunks = min(parts + -(-shape.width // ROUND), -(-problem.slots // ROUND))
    tiles = min(4 if max(shape.head_dim, shape.value_dim) <= 128 else 2, -(-problem.rows // 16))
    return DecodePlan(parts, chunks, tiles, -(-problem.rows // (16 * tiles)), _stages(problem, tiles))


def _stages(problem: Problem, tiles: int) -> int:
    """As many as there is memory for with two blocks on a multiprocessor, or one where two have no room."""
    form = stages_of(problem)
    fixed = _RESERVED + tiles * 16 * form.key_row + LINES * form.opened
    # More than two tiles leave no registers for a second block.
    for sharing in (2, 1) if tiles <= 2 else (1,):
        stages = (_MEMORY // sharing - fixed) // (LINES * form.bytes)
        if stages > 2:
            return min(stages, 5)
    return 2


def is_split(problem: Problem) -> bool:
    """Whether the call's work is split along the slots; of more tokens it is split by rows."""
    return problem.shape.width <= FEW_TOKENS


def partial_sizes(problem: Problem) -> tuple[int, int]:
    """Float32 in the workspace: sums [b, G, chunks, rows, Dv], then (maximum, total) [b, G, chunks, rows, 2]."""
    rows = problem.shape.rows * problem.shape.kv_heads * decode_plan(problem).chunks * problem.rows
    return rows * problem.shape.value_dim, rows * 2
