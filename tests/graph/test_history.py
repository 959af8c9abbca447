"""A program's history says of every step what its text form says, in far less room."""

import json

import torch

from dspark_compiler.config import CompileConfig
from dspark_compiler.graph.history import History
from dspark_compiler.graph.remarks import Declined, Match
from dspark_compiler.graph.rewrite import emit
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from tests.graph.build import Builder, aten, linear_weight
from tests.passes.capture import capture, tiny_model


def _at(data, entry, step):
    """The operators of an entry point as a step left it, in order: name, operator, arguments."""
    return [
        (name, operator, arguments)
        for name, _, forms in data["entries"][entry]["nodes"]
        for first, last, operator, arguments, _ in forms
        if first <= step <= last
    ]


def test_forms_of_a_node():
    b = Builder()
    neg = b.call(aten.neg.default, b.x)
    program = b.done(b.call(aten.tanh.default, neg))
    history = History()
    history.record("capture", program)
    history.record("nothing", program)
    neg.replace_all_uses_with(emit(neg, aten.sin.default, (b.x,)))
    history.record("swap", program, (Match("neg_default", "swapped", "prefill_4"),), (Declined("tanh", "stays"),))
    b.entry.graph.graph.erase_node(neg)
    history.record("sweep", program)
    data = json.loads(json.dumps(history.to_json()))
    rows = {name: forms for name, _, forms in data["entries"]["prefill_4"]["nodes"]}
    assert rows["%neg_default"] == [[0, 2, "aten.neg", "%embedding_default", "float32[1, 4, 8]"]]
    assert rows["%sin_default"] == [[2, 3, "aten.sin", "%embedding_default", "float32[1, 4, 8]"]]
    assert [form[:4] for form in rows["%tanh_default"]] == [
        [0, 1, "aten.tanh", "%neg_default"],
        [2, 3, "aten.tanh", "%sin_default"],
    ]
    assert rows["@table"] == [[0, 3, "param", "", "float32[7, 8]"]]
    assert rows["return"] == [[0, 3, "output", "out0=%tanh_default", ""]]
    assert [step["name"] for step in data["steps"]] == ["capture", "nothing", "swap", "sweep"]
    assert data["steps"][2]["matched"] == [{"text": "swapped", "entry": "prefill_4", "where": ["neg_default"]}]
    assert data["steps"][2]["declined"] == [{"text": "stays", "entry": None, "where": ["tanh"]}]


def test_a_value_written_anew_in_place_is_another_form():
    b = Builder()
    scaled = b.call(aten.mul.Tensor, b.x, 2.0)
    program = b.done(scaled)
    history = History()
    history.record("capture", program)
    scaled.args = (b.x, 3.0)
    history.record("three", program)
    (forms,) = (forms for name, _, forms in history.to_json()["entries"]["prefill_4"]["nodes"] if name == "%mul_tensor")
    assert [form[3] for form in forms] == ["%embedding_default, 2.0", "%embedding_default, 3.0"]


def test_layers():
    b = Builder()
    first = b.call(aten.linear.default, b.x, b.param("model.layers.0.up.weight", linear_weight(0)))
    second = b.call(aten.linear.default, b.call(aten.tanh.default, first), b.param("l.1.w", linear_weight(1)))
    head = b.call(aten.linear.default, b.call(aten.neg.default, second), b.param("head.weight", linear_weight(2)))
    history = History()
    history.record("capture", b.done(b.call(aten.tanh.default, head)))
    layers = [layer for name, layer, _ in history.to_json()["entries"]["prefill_4"]["nodes"] if name.startswith("%")]
    # inputs, embedding, then linear, tanh of layer 0, linear and neg of layer 1, head, tanh
    assert layers == [None, None, None, 0, 0, 1, 1, None, None]


def test_every_step_is_what_it_was():
    config = CompileConfig(max_seq_len=64, prefill_widths=(16,), verify_width=4, kv_budget=48)
    passes = default_pipeline(config)
    history = History()
    program, reports = run_passes(passes, capture(tiny_model("gemma2")), history=history)
    data = history.to_json()
    assert [step["name"] for step in data["steps"]] == ["capture", *(one.name for one in passes)]
    for step, report in enumerate(reports, start=1):
        found = [operator for entry in data["entries"] for _, operator, _ in _at(data, entry, step)]
        assert {name: found.count(name) for name in report.after} == report.after
    for name, entry in program.entries.items():
        nodes = [node for node in entry.graph.graph.nodes if node.op == "call_function"]
        left = [row for row, operator, _ in _at(data, name, len(passes)) if "." in operator]
        assert left == [f"%{node.name}" for node in nodes]


def test_what_rewrites_say_is_about_nodes_that_were_there():
    config = CompileConfig(max_seq_len=64, prefill_widths=(16,), verify_width=4)
    history = History()
    run_passes(default_pipeline(config), capture(tiny_model("llama", torch.bfloat16)), history=history)
    data = history.to_json()
    seen = 0
    for number, step in enumerate(data["steps"]):
        for remark in (*step["matched"], *step["declined"]):
            if remark["entry"] is None:
                continue
            # Rules may meet what a rule before them in the same pass has made.
            there = {name for at in (number - 1, number) for name, *_ in _at(data, remark["entry"], at)}
            assert {f"%{where}" for where in remark["where"]} <= there, step["name"]
            seen += len(remark["where"])
    assert seen > 100


def test_the_same_program_again_takes_no_room():
    program = capture(tiny_model("llama"))
    history = History()
    history.record("capture", program)
    once = len(json.dumps(history.to_json()))
    for _ in range(20):
        history.record("nothing", program)
    assert len(json.dumps(history.to_json())) < once * 1.2
