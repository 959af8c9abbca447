"""What a decoder's inputs are for, and what to feed them. b rows, S new tokens, P tokens of a past."""

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.branches import USE_CACHE
from dspark_compiler.frontend.onnx.types import dtype_of

_IDS = ("input_ids", "input_ids_0", "ids", "input", "tokens", "token_ids")
_ENCODERS = ("encoder_hidden_states", "encoder_attention_mask", "decoder_input_ids", "input_features")
_VISION = ("pixel_values", "images", "image", "image_features", "pixel_attention_mask")
_EMBEDDED = ("inputs_embeds", "input_embeds", "embeds")
_SEGMENTS = ("token_type_ids", "segment_ids")
# Lengths that onnxruntime-genai's models may take as inputs instead of a mask.
_LENGTHS = {
    "past_sequence_length": lambda new, past: past,
    "total_sequence_length": lambda new, past: past + new,
    "seqlens_k": lambda new, past: past + new - 1,
}


@dataclass(frozen=True)
class Inputs:
    """A decoder's graph inputs by their part; ``past`` are keys and values of earlier tokens, in the graph's order.

    ``branch`` says whether there is a past, in graphs that have a branch for each case.
    """

    ids: ir.Value
    mask: ir.Value | None
    positions: ir.Value | None
    past: tuple[ir.Value, ...]
    lengths: tuple[ir.Value, ...]
    branch: ir.Value | None = None

    @property
    def batch(self) -> int | None:
        """The number of rows the graph was made for, None if any."""
        return _fixed(self.ids, 0)

    def feeds(self, batch: int, width: int, past: int = 0) -> dict[ir.Value, Tensor]:
        """Rows of ``width`` tokens after ``past`` ones, nothing padded: token ids and the past are left unknown."""
        fed = {self.ids: torch.empty(batch, width, dtype=_dtype(self.ids), device="meta")}
        if self.mask is not None:
            fed[self.mask] = torch.ones(batch, past + width, dtype=_dtype(self.mask))
        if self.positions is not None:
            row = torch.arange(past, past + width, dtype=_dtype(self.positions))
            rank = 2 if self.positions.shape is None else len(self.positions.shape)
            fed[self.positions] = row if rank == 1 else row.expand(batch, width).contiguous()
        if self.branch is not None:
            fed[self.branch] = torch.ones(1, dtype=torch.bool)
        for value in self.lengths:
            number = _LENGTHS[value.name or ""](width, past)
            shape = () if value.shape is None else tuple(batch if n == 0 else 1 for n in range(len(value.shape)))
            fed[value] = torch.full(
                shape if value.name == "seqlens_k" else (1,) * len(shape), number, dtype=_dtype(value)
            )
        for value in self.past:
            assert value.shape is not None
            heads, size = _fixed(value, 1) or 0, _fixed(value, 3) or 0
            fed[value] = torch.empty((batch, heads, past, size), dtype=_dtype(value), device="meta")
        return fed


def find_inputs(graph: ir.Graph, where: Path) -> Inputs:
    """What each of the graph's inputs is.

    Raises:
        UnsupportedModelError: not a decoder over token ids, lengths that are fixed, or an input without a known part.
    """
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    names = {(value.name or "").lower(): value for value in inputs}
    _refuse_foreign(names, where)
    ids = next((names[name] for name in _IDS if name in names), None)
    if ids is None:
        raise UnsupportedModelError(
            f"{where}: none of its inputs ({', '.join(names) or 'none'}) is input_ids; only decoders over token ids "
            "can be compiled"
        )
    mask = positions = branch = None
    past, lengths = [], []
    for name, value in names.items():
        rank = None if value.shape is None else len(value.shape)
        if value is ids:
            continue
        if name in _LENGTHS:
            lengths.append(value)
        elif name == USE_CACHE:
            branch = value
        elif "mask" in name:
            mask = value
        elif "position" in name:
            positions = value
        elif rank == 4 and _fixed(value, 1) and _fixed(value, 3):
            past.append(value)
        else:
            raise UnsupportedModelError(
                f"{where}: input {value.name!r} has no known part; known are input_ids, attention_mask, position_ids "
                "and keys and values of a past [batch, heads, tokens, size]"
            )
    if (width := _fixed(ids, 1)) is not None:
        raise UnsupportedModelError(
            f"{where}: input {ids.name!r} takes exactly {width} tokens; export with dynamic axes for batch and tokens"
        )
    return Inputs(ids, mask, positions, tuple(past), tuple(lengths), branch)


def _refuse_foreign(names: dict[str, ir.Value], where: Path) -> None:
    for foreign, what in (
        (_ENCODERS, "has an encoder; only decoders can be compiled"),
        (_VISION, "is a vision model; only decoders over token ids can be compiled"),
        (_EMBEDDED, "takes embeddings for token ids; export it with input_ids"),
        (_SEGMENTS, "is an encoder (BERT and its kin); only decoders can be compiled"),
    ):
        found = next((name for name in foreign if name in names), None)
        if found is not None:
            raise UnsupportedModelError(f"{where}: input {names[found].name!r}: the model {what}")


def _fixed(value: ir.Value, axis: int) -> int | None:
    """The extent of an axis, None where it is left open."""
    if value.shape is None or axis >= len(value.shape):
        return None
    extent = value.shape[axis]
    return extent if isinstance(extent, int) else None


def _dtype(value: ir.Value) -> torch.dtype:
    assert value.dtype is not None
    return dtype_of(value.dtype, f"input {value.name!r}")
