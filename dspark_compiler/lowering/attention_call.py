"""What a call of the attention over cache slots asks for, whatever kernels do it."""

from dataclasses import dataclass
from typing import Any

from torch import fx

from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.nodes import shape_of, tensor_args
from dspark_compiler.lowering.storage import cache_form
from dspark_compiler.schedules.attention_shape import AttentionShape, CacheForm, Scoring

# What new keys and values are written to, without and with scratch.
_WRITTEN = (
    ("k_cache", "v_cache", "slot_position", "k_scale", "v_scale"),
    ("k_scratch", "v_scratch", "k_scratch_scale", "v_scratch_scale"),
)


@dataclass(frozen=True)
class AttentionCall:
    """Sizes, scores and slots of append_attention or scratch_attention."""

    shape: AttentionShape
    scoring: Scoring
    form: CacheForm

    @staticmethod
    def of(node: fx.Node) -> "AttentionCall":
        """The call that a node is."""
        given, tensors = bound_args(node), tensor_args(node)
        rows, heads, width, dim = shape_of(given["q"])
        batch, kv_heads, slots, _ = shape_of(given["k_cache"])
        scratch = shape_of(tensors["k_scratch"])[2] if "k_scratch" in tensors else 0
        shape = AttentionShape(rows, width, heads, kv_heads, dim, shape_of(given["v"])[3], batch, slots, scratch)
        scoring = Scoring(given["scale"], given["window"], given["softcap"], "sinks" in tensors)
        return AttentionCall(shape, scoring, cache_form(tensors))

    @property
    def sizes(self) -> str:
        """As part of a kernel's name."""
        shape = self.shape
        heads = f"h{shape.heads}x{shape.kv_heads}_d{shape.head_dim}x{shape.value_dim}"
        return f"{shape.rows}x{shape.width}_{heads}_c{shape.batch}x{shape.slots}_n{shape.scratch}"

    @property
    def name(self) -> str:
        """The same with what happens to scores."""
        scoring = self.scoring
        scores = f"s{scoring.scale!r}_w{scoring.window}_cap{scoring.softcap!r}" + ("_sinks" if scoring.sinks else "")
        return f"{self.sizes}_{scores}"


def stored_operands(node: fx.Node, importer: EntryImporter, before: int) -> tuple[list[Any], list[int]]:
    """The cache's tensors as a kernel takes them that writes new keys and values, behind ``before`` other arguments.

    And the numbers of those it writes: the operator's order of what it writes to and is told is the kernel's.
    """
    tensors = tensor_args(node)
    names = [name for name in tensors if name not in ("q", "k", "v", "sinks")]
    to = _WRITTEN["k_scratch" in tensors]
    written = [before + i for i, name in enumerate(names) if name in to]
    return [importer.env[tensors[name]] for name in names], written


def commit_shape(tensors: dict[str, fx.Node]) -> AttentionShape:
    """Sizes of commit_scratch: as many tokens as scratch has rows, and no queries of their own."""
    batch, kv_heads, slots, dim = shape_of(tensors["k_cache"])
    value_dim, scratch = shape_of(tensors["v_cache"])[3], shape_of(tensors["k_scratch"])[2]
    return AttentionShape(batch, scratch, kv_heads, kv_heads, dim, value_dim, batch, slots, scratch)


def commit_name(shape: AttentionShape) -> str:
    """The beginning of the name of its kernel."""
    dims = f"{shape.head_dim}x{shape.value_dim}"
    return f"commit_scratch_{shape.batch}x{shape.kv_heads}x{shape.slots}x{dims}_{shape.scratch}"
