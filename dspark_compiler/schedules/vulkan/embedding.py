"""Embeddings of few tokens, whose rows are awaited: the first product of a step stands behind no barrier."""

import tvm

from dspark_compiler.schedules.simt import rows
from dspark_compiler.schedules.simt.stream_linear import MOST_ROWS


def row_embedding(name: str, tokens: int, vocab: int, depth: int, *, weight_dtype: str) -> tvm.tirx.PrimFunc:
    """See simt's."""
    return rows.row_embedding(name, tokens, vocab, depth, weight_dtype=weight_dtype, hands_over=tokens <= MOST_ROWS)


def packed_embedding(name: str, tokens: int, vocab: int, depth: int, *, weight_dtype: str) -> tvm.tirx.PrimFunc:
    """See simt's."""
    return rows.packed_embedding(name, tokens, vocab, depth, weight_dtype=weight_dtype, hands_over=tokens <= MOST_ROWS)
