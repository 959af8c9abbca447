"""All that lowering must know of Vulkan devices."""

import dataclasses
from functools import partial
from typing import Any

from dspark_compiler.graph.program import EntryPoint
from dspark_compiler.lowering.epilogues import Epilogues
from dspark_compiler.lowering.importer import TargetLowering
from dspark_compiler.lowering.layout import LayoutPlan
from dspark_compiler.lowering.simt import fusions
from dspark_compiler.lowering.simt.attention import Exchange
from dspark_compiler.lowering.simt.target import simt_lowering
from dspark_compiler.lowering.vulkan.beside import cat
from dspark_compiler.lowering.vulkan.drawing import draw, find_heads, token_probs
from dspark_compiler.lowering.vulkan.eighths import find_eighths
from dspark_compiler.schedules.vulkan.embedding import packed_embedding, row_embedding
from dspark_compiler.schedules.vulkan.norm import rms_norm
from dspark_compiler.schedules.vulkan.stream_linear import stream_linear
from dspark_compiler.schedules.vulkan.tile_linear import tile_linear


def find_fusions(entry: EntryPoint, plan: LayoutPlan) -> Epilogues:
    """Those of any GPU, sequential heads that the first launch of a draw computes, and what is handed over rounded."""
    found = fusions.find_fusions(entry, plan)
    found.absorbed |= find_heads(entry, plan)
    found.eighths |= find_eighths(entry, plan, found)
    return found


def vulkan_lowering(dtype: str) -> TargetLowering:
    """Converters and kernels for any GPU, products of few rows that overlap, and of many that use cooperative matrices.

    With float32 these do not: its promise is eager's tokens, and cooperative matrices round to float16.
    """
    common = simt_lowering(dtype, Exchange.BETWEEN_LAUNCHES)
    own: dict[str, Any] = {t.__name__: t for t in (row_embedding, packed_embedding, rms_norm)}
    own["stream_linear"] = partial(stream_linear, by_matrices=dtype != "float32")
    own |= {} if dtype == "float32" else {"tile_linear": tile_linear}
    drawing = {"token_probs.default": token_probs, "draw.default": draw}
    converters, kernels = {**common.converters, "cat.default": cat, **drawing}, {**common.kernels, **own}
    return dataclasses.replace(common, converters=converters, find_fusions=find_fusions, kernels=kernels)
