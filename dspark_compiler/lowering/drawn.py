"""Distributions from which a token a sequence is drawn at once, and the sequential head their logits may come from."""

from dataclasses import dataclass

import torch
from torch import fx

from dspark_compiler.lowering.linear_call import LinearCall
from dspark_compiler.lowering.nodes import args_of, shape_of

_aten, _DRAW = torch.ops.aten, torch.ops.dspark.draw.default


@dataclass(frozen=True)
class Drawn:
    """The one draw from a distribution a sequence, and the numbers [B,N] and column it draws by."""

    draw: fx.Node
    uniform: fx.Node
    column: int

    @staticmethod
    def of(probs: fx.Node) -> "Drawn | None":
        """That of a node token_probs, None if there is none, or more."""
        batch, rows, vocab = shape_of(probs)
        flat = [user for user in probs.users if user.target is _aten.reshape.default]
        draws = [user for node in flat for user in node.users if user.target is _DRAW]
        if rows != 1 or len(draws) != 1 or shape_of(args_of(draws[0])[0]) != (batch, vocab):
            return None
        number = args_of(draws[0])[1]
        if number.target is not _aten.select.int:
            return None
        uniform, dim, column = args_of(number)
        found = uniform.op == "placeholder" and dim == 1 and column >= 0
        return Drawn(draws[0], uniform, column) if found else None


@dataclass(frozen=True)
class SequentialLogits:
    """base[:, column] + W2 W1[previous] (DSpark, eqs. 4 and 5), read by nobody but one distribution.

    Attributes:
        embedded: the node W1[previous], which others may read, too.
        inner: the nodes between it and the distribution, and ``base``'s row if nobody else reads that.
    """

    previous: fx.Node
    first: fx.Node
    second: LinearCall
    base: fx.Node
    column: int
    embedded: fx.Node
    inner: tuple[fx.Node, ...]

    @staticmethod
    def of(probs: fx.Node) -> "SequentialLogits | None":
        """Those that a node token_probs is given."""
        alone = args_of(probs)[0]
        if alone.target not in (_aten.unsqueeze.default, _aten.reshape.default) or len(alone.users) != 1:
            return None
        total = args_of(alone)[0]
        if total.target is not _aten.add.Tensor or total.kwargs or len(total.users) != 1:
            return None
        row, product = args_of(total)
        call = LinearCall.of(product)
        if call is None or call.bias is not None or len(product.users) != 1:
            return None
        embedded, selected = call.x, getattr(row, "target", None) is _aten.select.int
        if embedded.target is not _aten.embedding.default or not selected or shape_of(total) != shape_of(row):
            return None
        (first, previous, *_), (base, dim, column) = args_of(embedded), args_of(row)
        if dim != 1 or column < 0 or len(shape_of(previous)) != 1 or len(shape_of(base)) != len(shape_of(probs)):
            return None
        inner = (product, total, alone, *([row] if len(row.users) == 1 else []))
        return SequentialLogits(previous, first, call, base, column, embedded, inner)
