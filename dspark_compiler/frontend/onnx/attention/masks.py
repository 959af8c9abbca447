"""Whether a mask is causal or a sliding window, found out by working it out. S tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.onnx.attention.found import Found, Mask
from dspark_compiler.frontend.onnx.evaluate import Values, asked, evaluate, require
from dspark_compiler.frontend.onnx.graph import constant_tensor
from dspark_compiler.frontend.onnx.inputs import Inputs
from dspark_compiler.frontend.onnx.operators.base import named

HIDDEN = -1e4  # what is added to scores to hide a key is at most this

_WIDTH = 64  # tokens that a mask is always worked out for
_WIDEST = 4224  # a mask of so many tokens squared takes some hundred megabytes to work out
_FURTHEST = 1 << 21  # numbers beyond are no windows, but "to the end"


@dataclass(frozen=True)
class Proved:
    """The window (0: none) of a causal mask; ``length`` tokens it holds for, None for any number."""

    window: int
    length: int | None = None


class MaskProver:
    """Proves the masks of a graph, each once: layers share them."""

    def __init__(self, inputs: Inputs, positions: ir.Value) -> None:
        self._inputs = inputs
        self._positions = positions
        self._proved: dict[tuple[object, ...], Proved] = {}
        # By new and past tokens, shapes of what depends on token ids: a layer's mask may ask its keys for them,
        # and these are made of all layers before.
        self._shapes: dict[tuple[int, int], Values] = {}

    def prove(self, found: Found) -> Proved:
        """The window of an attention.

        Raises:
            UnsupportedModelError: its mask is neither causal nor a sliding window; names the node.
        """
        key = (*((mask.value, mask.kind) for mask in found.masks), found.causal, found.window)
        if key not in self._proved:
            self._proved[key] = self._prove(found)
        return self._proved[key]

    def _prove(self, found: Found) -> Proved:
        widths, beyond = _telling_widths(found)
        window = 0
        for width in widths:
            window = self._window(found, width) % width
            if window:
                break
        if window or not beyond:
            return Proved(window)
        if self._inputs.past:
            row = self._visible(found, 1, max(beyond))
            count = int(row.sum())
            whole = count == max(beyond) + 1
            return Proved(0 if whole else count)
        return Proved(0, length=widths[-1])

    def _window(self, found: Found, width: int) -> int:
        seen = self._visible(found, width, 0)
        last = int(seen[-1].sum())
        rows, keys = torch.arange(width)[:, None], torch.arange(width)[None]
        expected = (keys <= rows) & (keys > rows - last)
        if seen.shape != expected.shape or not torch.equal(seen, expected):
            raise UnsupportedModelError(
                f"{named(found.node)}: its mask is neither causal nor a sliding window; only decoders that see earlier "
                "tokens, and all of them alike, can be compiled"
            )
        return last

    def _visible(self, found: Found, width: int, past: int) -> Tensor:
        """Which keys each of ``width`` queries sees, bool [width, keys]."""
        queries = torch.arange(past, past + width)[:, None]
        keys = torch.arange(past + width)[None]
        seen = (keys <= queries) if found.causal else torch.ones(width, past + width, dtype=torch.bool)
        if found.window:
            seen = seen & (keys > queries - found.window)
        feeds = self._inputs.feeds(1, width, past) | {self._positions: queries.T.clone()}
        values: Values = {}
        if found.masks:
            shapes = self._shapes.setdefault((width, past), {})
            values = evaluate(feeds, [mask.value for mask in found.masks], weights=True, known=dict(shapes))
            shapes.update(_unknown(values, {*shapes, *(value for value, given in feeds.items() if given.is_meta)}))
        for mask in found.masks:
            part = self._part(found, mask, values[mask.value])
            # A cache that keeps a window's keys only has no others to hide.
            seen = part & seen[:, -part.shape[-1] :] if part.shape[-1] > 1 else part & seen
        return seen

    def _part(self, found: Found, mask: Mask, value: Tensor) -> Tensor:
        if value.is_meta:
            raise UnsupportedModelError(
                f"{named(found.node)}: its mask {mask.value.name!r} depends on the tokens; only masks that follow from "
                "their number can be compiled"
            )
        if mask.kind == "add":
            keep = value == 0
            if not bool((keep | (value <= HIDDEN)).all()):
                raise UnsupportedModelError(
                    f"{named(found.node)}: {mask.value.name!r} adds numbers to scores that neither keep nor hide a key "
                    "(ALiBi or another bias); only rope and learned positions can be compiled"
                )
        else:
            keep = value.bool() if mask.kind == "keep" else ~value.bool()
        while keep.ndim > 2:
            first = keep[0]
            if not torch.equal(first.expand_as(keep), keep):
                raise UnsupportedModelError(f"{named(found.node)}: its mask differs from head to head or row to row")
            keep = first
        return keep if keep.ndim == 2 else keep.view(1, -1)


def _unknown(values: Values, sources: set[ir.Value]) -> Values:
    """Those of the values that depend on ``sources``, and would be no better known if more than shapes were asked."""
    found = {value: values[value] for value in sources}
    for value, tensor in values.items():
        node = value.producer()
        if node is None or not tensor.is_meta or value in found:
            continue
        operator = require(node)
        decides = (i for place, i in enumerate(node.inputs) if i is not None and place not in operator.static)
        if not operator.shape_only and any(i in found for i in decides):
            found[value] = tensor
    return found


def _telling_widths(found: Found) -> tuple[list[int], list[int]]:
    """Widths at which a window would show, by the numbers that masks are made of; and those that are too wide."""
    widths = {_WIDTH}
    beyond = []
    for number in _numbers([mask.value for mask in found.masks]) | {found.window}:
        width = number + 3
        if number > 1 and width <= _WIDEST:
            widths.add(max(width, _WIDTH))
        elif _WIDEST < width < _FURTHEST:
            beyond.append(width)
    return sorted(widths), beyond


def _numbers(masks: Sequence[ir.Value]) -> set[int]:
    found: set[int] = set()
    for value in asked(masks):
        tensor = constant_tensor(value)
        if tensor is None:
            continue
        if tensor.size == 1:
            number = float(np.asarray(tensor.numpy()).astype(np.float64).reshape(()))
            if abs(number) < _FURTHEST and number.is_integer():
                found.add(abs(int(number)))
        elif len(tensor.shape) >= 2:
            found.update(extent - 3 for extent in tensor.shape.numpy()[-2:])
    return found
