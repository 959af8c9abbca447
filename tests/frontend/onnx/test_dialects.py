"""Every way attention, rope, norms and masks are written, against ONNX Runtime on the same file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tests import onnx_graphs
from tests.frontend.onnx.running import attentions, logits, options, read, reference
from tests.onnx_graphs import DIALECTS, LAYERS, SIZE, VOCAB

_TOKENS = 12  # more than the windows of the dialects that have one
_EXPECTED = {
    "grouped-packed-window": (SIZE**-0.5, 5, 3.0),
    "grouped-interleaved": (0.3, 0, 0.0),
    "written-out-window": (SIZE**-0.5, 5, 0.0),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_logits_are_onnx_runtimes(dialect: str, tmp_path: Path) -> None:
    path = onnx_graphs.build(dialect, tmp_path / "model.onnx")
    decoder = read(path)
    ids = torch.randint(VOCAB, (1, _TOKENS), generator=torch.Generator().manual_seed(1))
    found = logits(decoder, ids, torch.arange(_TOKENS)[None])
    expected = reference(path, decoder, ids[0].tolist())
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=2e-4, atol=2e-4)
    assert len(attentions(decoder)) == decoder.layers == LAYERS
    for node in attentions(decoder):
        assert options(node) == pytest.approx(_EXPECTED.get(dialect, (SIZE**-0.5, 0, 0.0)))


@pytest.mark.parametrize("dialect", ["standard", "written-out"])
def test_a_graph_for_one_sequence_only(dialect: str, tmp_path: Path) -> None:
    """As exporters write it that were told of a dynamic number of tokens alone: 1 stands in shapes."""
    model, path = onnx_graphs.write(dialect), tmp_path / "model.onnx"
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    for node in model.graph.node:
        node.input[:] = ["one_row" if name == "input_ids" else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), "one_row_shape"))
    model.graph.node.insert(0, helper.make_node("Reshape", ["input_ids", "one_row_shape"], ["one_row"]))
    onnx.save(model, str(path))
    decoder = read(path)
    assert decoder.inputs.batch == 1
    ids = torch.randint(VOCAB, (1, _TOKENS), generator=torch.Generator().manual_seed(1))
    found = logits(decoder, ids, torch.arange(_TOKENS)[None])
    np.testing.assert_allclose(found[0].numpy(), reference(path, decoder, ids[0].tolist()), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("negated", [False, True])
def test_of_a_merged_decoder_the_branch_for_a_past_is_taken(negated: bool, tmp_path: Path) -> None:
    path, plain = tmp_path / "merged.onnx", onnx_graphs.build("written-out", tmp_path / "model.onnx")
    onnx.save(onnx_graphs.write_merged(negated), str(path))
    decoder = read(path)
    assert not any(node.op_type == "If" for node in decoder.graph)
    assert len(decoder.graph.initializers) == len(read(plain).graph.initializers)
    ids = torch.randint(VOCAB, (1, _TOKENS), generator=torch.Generator().manual_seed(1))
    expected = reference(plain, read(plain), ids[0].tolist())
    np.testing.assert_allclose(logits(decoder, ids, torch.arange(_TOKENS)[None])[0].numpy(), expected, atol=2e-4)
    np.testing.assert_allclose(reference(path, decoder, ids[0].tolist()), expected, atol=2e-4)


@pytest.mark.parametrize("dialect", ["grouped", "standard", "written-out"])
def test_nothing_but_positions_says_where_tokens_stand(dialect: str, tmp_path: Path) -> None:
    decoder = read(onnx_graphs.build(dialect, tmp_path / "model.onnx"))
    ids = torch.randint(VOCAB, (2, 6), generator=torch.Generator().manual_seed(1))
    spread = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 2, 4, 6, 8, 10]])
    found = logits(decoder, ids, spread)
    alone = logits(decoder, ids[1:], spread[1:])
    torch.testing.assert_close(found[1:], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone, logits(decoder, ids[1:], spread[:1]), atol=1e-2)
    read_by = {value.name for value in decoder.graph.inputs if value.uses()}
    assert read_by == {"input_ids", "positions"}
