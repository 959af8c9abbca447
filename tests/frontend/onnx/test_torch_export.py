"""A model that torch.onnx.export itself wrote, with a past: exporters change, and this notices."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tests.frontend.onnx.running import attentions, logits, options, read, reference
from tests.tiny_models import TINY, VOCAB

_TOKENS = 9


class _WithPast(nn.Module):
    """Token ids [b,S], a mask [b,P+S], keys and values [b,G,P,D] a layer -> logits [b,S,V], and those grown."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, ...]:
        cache = DynamicCache(config=self.model.config)
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        found = self.model(input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        return (found.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def _export(model: PreTrainedModel, path: Path) -> None:
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = torch.zeros(2, config.num_key_value_heads, 5, size)
    past = [(kept.clone(), kept.clone()) for _ in range(config.num_hidden_layers)]
    names = [f"{layer}.{part}" for layer in range(len(past)) for part in ("key", "value")]
    some = torch.export.Dim.DYNAMIC
    grown = {0: some, 2: some}
    program = torch.onnx.export(
        _WithPast(model).eval(),
        (torch.ones((2, 3), dtype=torch.int64), torch.ones((2, 8), dtype=torch.int64), past),
        dynamo=True,
        opset_version=18,
        dynamic_shapes={
            "input_ids": {0: some, 1: some},
            "attention_mask": {0: some, 1: some},
            "past": [(grown, grown)] * len(past),
        },
        input_names=["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    model = TINY["llama"]()
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    _export(model, path)
    return model, path


def test_logits_are_eager_s_and_onnx_runtime_s(exported: tuple[PreTrainedModel, Path]) -> None:
    model, path = exported
    decoder = read(path)
    ids = torch.randint(VOCAB, (1, _TOKENS), generator=torch.Generator().manual_seed(1))
    found = logits(decoder, ids, torch.arange(_TOKENS)[None])[0].numpy()
    with torch.no_grad():
        eager = model(ids).logits[0].numpy()
    assert np.abs(eager).max() > 0.1
    np.testing.assert_allclose(found, eager, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(found, reference(path, decoder, ids[0].tolist()), rtol=2e-4, atol=2e-4)


def test_only_ids_and_positions_are_left(exported: tuple[PreTrainedModel, Path]) -> None:
    model, path = exported
    decoder = read(path)
    # Of a past without tokens its shape may still be asked.
    asked = {value.name for value in decoder.graph.inputs for use in value.uses() if use.node.op_type != "Shape"}
    assert asked == {"input_ids", "positions"}
    assert len(attentions(decoder)) == decoder.layers == model.config.num_hidden_layers
    size = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    for node in attentions(decoder):
        assert options(node) == pytest.approx((size**-0.5, 0, 0.0))
    assert decoder.exact
