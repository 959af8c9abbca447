"""Each family's captured graphs, run operator by operator, against eager."""

import pytest
import torch
from torch._ops import OpOverload

from dspark_compiler.config import CompileConfig
from dspark_compiler.frontend.capture import capture
from dspark_compiler.graph.decompose import WHOLE
from dspark_compiler.graph.program import EntryKind, Role
from tests.running import inputs, logits_of, relative_error
from tests.tiny_models import TINY, WINDOW
from tests.traces import one_process

CONFIG = CompileConfig(max_batch=2, prefill_widths=(4 * WINDOW,), verify_width=2 * WINDOW, max_seq_len=32)
RTOL = 1e-5


@pytest.fixture(scope="module", params=[pytest.param(name, marks=one_process(name)) for name in TINY])
def captured(request):
    model = TINY[request.param]()
    return model, capture(model, CONFIG)


def test_every_entry_point_computes_what_eager_computes(captured):
    model, program = captured
    assert {n: (e.kind, e.batch, e.width) for n, e in program.entries.items()} == {
        "prefill_20": (EntryKind.PREFILL, 1, 20),
        "decode": (EntryKind.DECODE, 2, 1),
        "verify_10": (EntryKind.VERIFY, 2, 10),
    }
    for entry in program.entries.values():
        ids, positions = inputs(entry)
        want = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        got = logits_of(entry, program, ids, positions)
        assert got.shape == (entry.batch, entry.width, 128)
        assert relative_error(got, want) <= RTOL, entry.name


def test_positions_reach_the_model(captured):
    model, program = captured
    entry = program.entries["verify_10"]
    ids, positions = inputs(entry)
    positions = positions * 2  # a shift alone would leave rope's scores as they were
    want = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False).logits
    got = logits_of(entry, program, ids, positions)
    assert relative_error(got, want) <= RTOL
    assert relative_error(logits_of(entry, program, ids, positions // 2), want) > 1e-3


def test_graphs_hold_what_the_program_promises(captured):
    model, program = captured
    names = set(dict(model.named_parameters())) | set(dict(model.named_buffers()))
    assert program.used_params() == set(program.params)
    assert {n for n in program.params if "lifted" not in n} <= names
    for entry in program.entries.values():
        placeholders = [n for n in entry.graph.graph.nodes if n.op == "placeholder"]
        assert [n.meta["ref"] for n in placeholders if n.meta["role"] is Role.INPUT] == ["input_ids", "positions"]
        for node in placeholders:
            assert node.meta["val"].device.type == "meta"
            if node.meta["role"] is Role.PARAM:
                param = program.params[node.meta["ref"]]
                assert (node.meta["val"].shape, node.meta["val"].dtype) == (param.shape, param.dtype)
        for node in entry.graph.graph.nodes:
            assert node.op in ("placeholder", "call_function", "output")
            assert node.op == "output" or "val" in node.meta


def test_only_core_operators_and_those_kept_whole_are_left(captured):
    _, program = captured
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    for entry in program.entries.values():
        for node in entry.graph.graph.nodes:
            if isinstance(node.target, OpOverload) and node.target not in WHOLE:
                assert not node.target.has_kernel_for_dispatch_key(composite), node.target
                assert not node.target._schema.is_mutable, node.target


def test_a_graph_is_the_same_for_every_width_but_for_sizes(captured):
    _, program = captured
    targets = [[n.target for n in e.graph.graph.nodes if n.op == "call_function"] for e in program.entries.values()]
    assert targets.count(targets[0]) == len(targets)
