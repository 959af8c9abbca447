"""What cannot be compiled is refused in one line that names it and says what would work."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import DSparkError, InputError, UnsupportedModelError
from dspark_compiler.frontend.source import open_source
from tests import onnx_graphs
from tests.onnx_graphs import SIZE, VOCAB, Writer

Change = Callable[[ModelProto], None]


def refusal(path: Path, kind: type[DSparkError] = UnsupportedModelError) -> str:
    with pytest.raises(kind) as caught:
        open_source(str(path))
    message = str(caught.value)
    assert "\n" not in message
    return message


def changed(dialect: str, path: Path, change: Change) -> Path:
    model = onnx_graphs.write(dialect)
    change(model)
    onnx.save(model, str(path))
    return path


def node(model: ModelProto, operator: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == operator)


def unknown_operator(model: ModelProto) -> None:
    found = node(model, "SimplifiedLayerNormalization")
    found.op_type, found.domain = "QMoE", "com.microsoft"


def branch(model: ModelProto) -> None:
    """A node gives way to one that runs one of two graphs."""
    found = node(model, "Sigmoid")
    kind = TensorProto.FLOAT
    graphs = {
        f"{which}_branch": helper.make_graph(
            [helper.make_node("Sigmoid", [found.input[0]], [f"{which}_out"])],
            which,
            [],
            [helper.make_tensor_value_info(f"{which}_out", kind, None)],
        )
        for which in ("then", "else")
    }
    tokens = found.input[0]
    choice = helper.make_node("If", ["computed"], list(found.output), name="choice", **graphs)
    found.CopyFrom(choice)
    place = next(index for index, other in enumerate(model.graph.node) if other.name == "choice")
    model.graph.node.insert(place, helper.make_node("Equal", [tokens, tokens], ["computed"], name="computed"))


def loop(model: ModelProto) -> None:
    """A node gives way to one that runs a graph twice."""
    found = node(model, "Sigmoid")
    kind, gate = TensorProto.FLOAT, found.input[0]
    body = helper.make_graph(
        [helper.make_node("Sigmoid", ["value"], ["next"]), helper.make_node("Identity", ["on"], ["still"])],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", kind, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", kind, None),
        ],
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(2), "twice"))
    found.CopyFrom(helper.make_node("Loop", ["twice", "", gate], list(found.output), name="again", body=body))


def encoder(model: ModelProto) -> None:
    """What encoders and embedders give."""
    no_logits(model)
    next(value for value in model.graph.output if value.name == "last_hidden_state").name = "pooler_output"
    next(n for n in model.graph.node if n.name == "out_logits").output[0] = "pooler_output"


def no_logits(model: ModelProto) -> None:
    for value in (*model.graph.output, *model.graph.node):
        if isinstance(value, onnx.ValueInfoProto) and value.name == "logits":
            value.name = "last_hidden_state"
    node_of_logits = next(n for n in model.graph.node if n.name == "out_logits")
    node_of_logits.output[0] = "last_hidden_state"


def vision(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["b", 3, 224, 224]))


def segments(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["b", "s"]))


def fixed_length(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 16


def old_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 11


def future_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 99


def nowhere(model: ModelProto) -> None:
    node(model, "SimplifiedLayerNormalization").input[0] = "nowhere"


def bidirectional(model: ModelProto) -> None:
    attention = node(model, "Attention")
    next(a for a in attention.attribute if a.name == "is_causal").i = 0


def misshapen(model: ModelProto) -> None:
    """Shape inference fails: a product of 32 and 31 columns."""
    weight = next(t for t in model.graph.initializer if t.name == "0.gate")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((31, 48), np.float32), "0.gate"))


def padding(model: ModelProto) -> None:
    """Lengths that are one too many."""
    found = next(n for n in model.graph.node if n.op_type == "Sub")
    found.op_type = "Add"


def last_logits_only(model: ModelProto) -> None:
    found = next(n for n in model.graph.node if n.name == "out_logits")
    found.op_type = "ReduceMax"
    found.attribute.append(helper.make_attribute("keepdims", 1))
    found.input.append("one")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([1], np.int64), "one"))


@pytest.mark.parametrize(
    ("dialect", "change", "kind", "named", "remedy"),
    [
        ("grouped", unknown_operator, UnsupportedModelError, "(com.microsoft.QMoE)", "Hugging Face folder"),
        ("grouped", branch, UnsupportedModelError, "'choice' (If)", "Hugging Face folder"),
        ("grouped", loop, UnsupportedModelError, "'again' (Loop)", "Hugging Face folder"),
        ("grouped", encoder, UnsupportedModelError, "pooler_output", "ForCausalLM"),
        ("grouped", no_logits, UnsupportedModelError, "last_hidden_state", "ForCausalLM"),
        ("grouped", vision, UnsupportedModelError, "'pixel_values'", "only decoders"),
        ("grouped", segments, UnsupportedModelError, "'token_type_ids'", "only decoders"),
        ("grouped", fixed_length, UnsupportedModelError, "exactly 16 tokens", "dynamic axes"),
        ("grouped", old_opset, InputError, "opset 11", "version_converter"),
        ("grouped", future_opset, InputError, "opset 99", "an earlier one"),
        ("grouped", nowhere, UnsupportedModelError, "SimplifiedLayerNormalization): its input 'nowhere'", "again"),
        ("standard", bidirectional, UnsupportedModelError, "(Attention)", "decoders that see earlier"),
        ("grouped", misshapen, UnsupportedModelError, "(MatMul)", "cannot be run"),
        ("grouped", padding, UnsupportedModelError, "(com.microsoft.GroupQueryAttention)", "without padding"),
        ("grouped", last_logits_only, UnsupportedModelError, "'logits'", "logits of every token"),
    ],
)
def test_a_graph_is_refused(
    dialect: str, change: Change, kind: type[DSparkError], named: str, remedy: str, tmp_path: Path
) -> None:
    message = refusal(changed(dialect, tmp_path / "model.onnx", change), kind)
    assert named in message
    assert remedy in message


def test_a_bias_by_distance_is_no_mask(tmp_path: Path) -> None:
    def sloped(model: ModelProto) -> None:
        found = next(n for n in model.graph.node if n.op_type == "Where")
        fill = next(t for t in model.graph.initializer if t.name == found.input[1])
        fill.CopyFrom(onnx.numpy_helper.from_array(np.float32(-0.5), fill.name))

    message = refusal(changed("written-out", tmp_path / "model.onnx", sloped))
    assert "(MatMul)" in message
    assert "ALiBi" in message


def test_places_that_are_no_positions(tmp_path: Path) -> None:
    """Angles of half the positions, worked out from the number of tokens."""

    def halved(w: Writer) -> None:
        ids = w.input("input_ids", ["batch", "tokens"])
        tokens = w.op("Squeeze", w.op("Shape", ids, start=1, end=2))
        half = w.op("Range", w.number(0.0), w.op("Mul", w.op("Cast", tokens, to=1), w.number(0.5)), w.number(0.5))
        scale = w.op("Unsqueeze", half, w.ints(0, 2))

        def attend(w: Writer, layer: int, x: str) -> str:
            q, k, v = onnx_graphs.projections(w, layer, w.op("Add", x, scale))
            options = {"q_num_heads": onnx_graphs.HEADS, "kv_num_heads": onnx_graphs.GROUPS, "is_causal": 1}
            return w.op("Attention", q, k, v, **options)

        onnx_graphs.decoder(w, attend, onnx_graphs.standard_norm, ids)

    writer = Writer(23)
    halved(writer)
    onnx.save(writer.model(), str(tmp_path / "model.onnx"))
    message = refusal(tmp_path / "model.onnx")
    assert "(Add)" in message
    assert "position_ids" in message


def test_files_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model at all")
    assert "not an ONNX model" in refusal(path, InputError)
    onnx.save(
        onnx_graphs.write("grouped"), str(path), save_as_external_data=True, location="weights", size_threshold=64
    )
    weights = tmp_path / "weights"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-40])
    message = refusal(path, InputError)
    assert "cut short" in message
    assert str(weights) in message
    weights.unlink()
    message = refusal(path, InputError)
    assert "missing" in message
    assert str(weights) in message
    weights.write_bytes(whole)
    assert open_source(str(path)).info.vocab_size == VOCAB


def test_two_models_in_a_folder(tmp_path: Path) -> None:
    for name in ("decoder.onnx", "decoder_with_past.onnx"):
        onnx_graphs.build("grouped", tmp_path / name)
    message = refusal(tmp_path, InputError)
    assert "decoder.onnx and decoder_with_past.onnx" in message
    (tmp_path / "decoder.onnx").unlink()
    assert open_source(str(tmp_path)).path.name == "decoder_with_past.onnx"


def test_what_an_artifact_cannot_ask_of_a_graph(tmp_path: Path) -> None:
    model = open_source(str(onnx_graphs.build("grouped", tmp_path / "model.onnx"))).load_for_compile()
    with pytest.raises(UnsupportedModelError, match="--heads ngram"):
        model.capture(CompileConfig(heads="somewhere", max_seq_len=64))
    assert SIZE
