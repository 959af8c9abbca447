"""The training target beside kvpress's KVzip+ scores, on one layer."""

import torch

from dspark_compiler.training.reconstruction import attend, value_lengths
from tests.kvpress_oracle import HEAD_DIM, HEADS, HIDDEN, attention_layer, kvpress

CONTEXT, TOKENS = 60, 140


def test_same_importance() -> None:
    layer = attention_layer(TOKENS)
    with kvpress() as found:
        press = found("kvzip_press", "KVzipPress")(compression_ratio=0.5, kvzip_plus_normalization=True)
        # It has read the context and scores while the rest, which repeats it, is read in one chunk.
        press.context_length = press.end_idx = CONTEXT
        press.score_val = torch.zeros(layer.module.layer_idx + 1, 1, layer.key.shape[1], CONTEXT)
        repeated = {"position_embeddings": tuple(table[:, CONTEXT:] for table in layer.position_embeddings)}
        press.score_kvzip(layer.module, layer.hidden[:, CONTEXT:], layer.key, layer.value, None, repeated)
    gram = torch.stack([part.T @ part for part in layer.module.o_proj.weight.view(HIDDEN, HEADS, HEAD_DIM).unbind(1)])
    states = (layer.query, layer.key, layer.value)
    _, paid = attend(*states, HEAD_DIM**-0.5, 0, 0.0, None, CONTEXT, layer.hidden[0])
    importance = paid * value_lengths(layer.value[0, :, :CONTEXT], gram)
    grouped = importance.view(layer.key.shape[1], -1, CONTEXT).amax(1)
    torch.testing.assert_close(grouped, press.score_val[layer.module.layer_idx, 0], rtol=1e-4, atol=1e-7)
