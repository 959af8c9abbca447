"""Attention of the frozen target while it reads or writes many sequences, through the seam of the front end.

One function serves every family: the seam hands it queries, keys and values with rope applied, and the window of each
layer's mask. So no family's own cache has to be understood.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from dspark_compiler.frontend.seam import Attend, seam
from dspark_compiler.graph.reference import masked_attention
from dspark_compiler.models import family_of


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    _layer: int,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
    /,
) -> Tensor:
    """Whole sequences from their first token on, as graph/ops.py defines attention.

    What pads a sequence stands behind it, where none of its tokens looks.
    """
    length = q.shape[2]
    plain = (window == 0 or window >= length) and not softcap and sinks is None
    if plain:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2).contiguous()
    positions = torch.arange(length, device=q.device)
    distance = positions[:, None] - positions
    mask = (distance >= 0) & (distance < (window or length))
    return masked_attention(q, k, v, mask.expand(q.shape[0], k.shape[1], -1, -1), scale, softcap, sinks)


@contextmanager
def target_attention(model: PreTrainedModel, attend: Attend = causal_attention) -> Iterator[None]:
    """Within, the layers of ``model`` attend by ``attend``, without gradients."""
    with torch.no_grad(), seam(model, family_of(model.config.model_type), attend):
        yield


def run_target(model: PreTrainedModel, ids: Tensor, positions: Tensor) -> Tensor:
    """The final hidden states [b,S,d], as the model's head reads them, of ids [b,S] at positions [b,S]."""
    hidden: Tensor = model.base_model(
        input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False
    ).last_hidden_state
    return hidden
