"""A transformers model as ONNX, with past keys and values in and out."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from dspark_compiler.compare.eager import cache_keyword
from dspark_compiler.frontend.source import open_source

OPSET = 23  # the first with attention, rotary embedding and RMS norm as operators

_Past = list[tuple[torch.Tensor, torch.Tensor]]


class _WithPast(nn.Module):
    """ids and positions [1, N], and keys and values [1, G, P, D] a layer -> last logits [1, 1, V], and those grown."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._keyword = cache_keyword(model)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, past: _Past) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache(config=self.model.config)
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        options: dict[str, Any] = {self._keyword: cache, "use_cache": True, "logits_to_keep": 1}
        logits = self.model(ids, position_ids=positions, **options).logits
        return (logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def export(source: str, dtype: str, path: Path) -> None:
    """Writes ``path``, with the weights in a file beside it.

    Raises what ``open_source`` raises.
    """
    model = open_source(source).load(getattr(torch, dtype))
    module = _WithPast(model).eval()
    past = _example_past(model)
    names = [f"{layer}.{kind}" for layer in range(len(past)) for kind in ("key", "value")]
    grown = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        module,
        (torch.ones((1, 5), dtype=torch.int64), torch.arange(7, 12)[None], past),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes={"ids": {1: grown}, "positions": {1: grown}, "past": [({2: grown}, {2: grown})] * len(past)},
        input_names=["ids", "positions", *(f"past.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
        verbose=False,
    )
    assert program is not None, "dynamo=True returns the program"
    program.save(str(path), external_data=True)


def _example_past(model: PreTrainedModel) -> _Past:
    """Keys and values of seven tokens, of the shapes the model itself makes."""
    cache = DynamicCache(config=model.config)
    options: dict[str, Any] = {cache_keyword(model): cache, "use_cache": True}
    with torch.inference_mode():
        model(torch.ones((1, 7), dtype=torch.int64), **options)
    # Tensors made in inference mode cannot be traced.
    return [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
