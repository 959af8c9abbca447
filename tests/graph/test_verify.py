"""The verifier names entry point and node of each kind of damage."""

import operator

import pytest
import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from dspark_compiler.errors import PassError
from dspark_compiler.graph.program import EntryKind, Program, Role, TensorSpec
from dspark_compiler.graph.verify import verify
from tests.graph.build import HIDDEN, VOCAB, Builder, aten, linear_weight

dspark = torch.ops.dspark


@pytest.fixture
def built() -> Builder:
    b = Builder()
    y = b.call(aten.linear.default, b.x, b.param("w", linear_weight(0)))
    head = b.param("head", linear_weight(1, VOCAB))
    b.done(b.call(aten.linear.default, y, head), names=("logits",))
    return b


def _node(b: Builder, target) -> fx.Node:
    return next(n for n in b.entry.graph.graph.nodes if n.target is target)


def _rejects(program: Program, *parts: str) -> None:
    with pytest.raises(PassError) as caught:
        verify(program, "after some_pass")
    message = str(caught.value)
    assert message.startswith("after some_pass: prefill_4")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_sound_program_passes(built):
    verify(built.program, "after some_pass")


def test_entry_under_another_name(built):
    built.program.entries = {"prefill_4x": built.entry}
    _rejects(built.program, "prefill_4x", "calls itself 'prefill_4'")


def test_operator_after_its_use(built):
    linear = _node(built, aten.linear.default)
    next(iter(reversed(built.entry.graph.graph.nodes))).prepend(linear)
    _rejects(built.program, "malformed graph")


def test_placeholder_among_operators(built):
    first = built.entry.placeholder("head")
    assert first is not None
    user = next(iter(first.users))
    user.prepend(first)
    _rejects(built.program, "head", "out of place")


def test_foreign_node_kind(built):
    graph = built.entry.graph.graph
    with graph.inserting_before(next(iter(reversed(graph.nodes)))):
        graph.call_method("neg", (built.x,))
    _rejects(built.program, "a call_method node")


@pytest.mark.parametrize("key", ["role", "ref", "val"])
def test_placeholder_without_meta(built, key):
    del built.entry.placeholder("w").meta[key]
    _rejects(built.program, "w: placeholder without meta", key)


def test_two_placeholders_for_one_param(built):
    built.entry.placeholder("head").meta["ref"] = "w"
    _rejects(built.program, "head: a second placeholder for w")


def test_param_that_is_not_there(built):
    del built.program.params["w"]
    _rejects(built.program, "w: no param w")


@pytest.mark.parametrize("param", [torch.zeros(HIDDEN, 3), torch.zeros(HIDDEN, HIDDEN, dtype=torch.float16)])
def test_param_that_differs(built, param):
    built.program.params["w"] = param
    _rejects(built.program, "w: declared float32[8, 8]", "but w is")


def test_state_that_is_not_there(built):
    built.entry.add_placeholder(Role.STATE, "k_cache.0", TensorSpec((1,), torch.float32))
    _rejects(built.program, "k_cache_0: no state k_cache.0")


def test_state_that_differs(built):
    built.entry.add_placeholder(Role.STATE, "k_cache.0", TensorSpec((1,), torch.float32))
    built.program.states["k_cache.0"] = TensorSpec((2,), torch.float32)
    _rejects(built.program, "declared float32[1], but k_cache.0 is float32[2]")


def test_missing_input(built):
    positions = built.entry.placeholder("positions")
    built.entry.graph.graph.erase_node(positions)
    _rejects(built.program, "inputs are input_ids; must be input_ids, positions")


def test_input_of_another_type(built):
    built.entry.placeholder("positions").meta["val"] = torch.empty(1, 4, dtype=torch.int32, device="meta")
    _rejects(built.program, "positions: declared int32[1, 4]", "int64[1, 4]")


def test_a_cached_program_needs_lengths(built):
    built.program.states["k_cache.0"] = TensorSpec((1,), torch.float32)
    _rejects(built.program, "must be input_ids, positions, sequence, length, count")


def test_prefill_of_two_sequences():
    b = Builder(batch=2)
    b.done(b.x)
    _rejects(b.program, "one sequence, not 2")


def test_operator_of_another_library(built):
    _node(built, aten.embedding.default).target = torch.ops.prims.add.default
    _rejects(built.program, "embedding_default: operator prims.add.default is neither aten nor dspark")


@pytest.mark.parametrize("target", [torch.nn.functional.linear, operator.add, torch.ops.aten.linear])
def test_target_that_is_no_overload(built, target):
    _node(built, aten.linear.default).target = target
    _rejects(built.program, "linear_default: ", "is not an operator overload")


def test_stale_shape(built):
    _node(built, aten.linear.default).meta["val"] = torch.empty(1, 4, 9, device="meta")
    _rejects(built.program, "linear_default: recorded as float32[1, 4, 9], but yields float32[1, 4, 8]")


def test_stale_type(built):
    _node(built, aten.linear.default).meta["val"] = torch.empty(1, 4, 8, dtype=torch.float16, device="meta")
    _rejects(built.program, "linear_default: recorded as float16[1, 4, 8]")


def test_no_value_recorded(built):
    del _node(built, aten.linear.default).meta["val"]
    _rejects(built.program, "linear_default: recorded as nothing")


def test_value_of_no_known_kind(built):
    _node(built, aten.linear.default).meta["val"] = 3
    _rejects(built.program, "linear_default: yields int, not a tensor")


def test_open_shape(built):
    with FakeTensorMode(shape_env=(env := ShapeEnv())):
        value = torch.empty(1, env.create_unbacked_symint(), 8)
    _node(built, aten.linear.default).meta["val"] = value
    _rejects(built.program, "linear_default: shape", "not static")


def test_arguments_that_do_not_fit(built):
    linear = _node(built, aten.linear.default)
    linear.args = (built.x, built.entry.placeholder("table"), built.x)
    _rejects(built.program, "linear_default: aten.linear.default rejects its arguments")


def test_write_to_what_is_no_state(built):
    built.call(aten.add_.Tensor, built.x, 1.0)
    _rejects(built.program, "add__tensor: writes embedding_default, which is no state")


def test_state_read_by_a_foreign_operator():
    b = Builder(kind=EntryKind.VERIFY)
    b.entry.add_placeholder(Role.INPUT, "length", TensorSpec((1,), torch.int32))
    b.program.states["k_cache.0"] = TensorSpec((1,), torch.float32)
    state = b.entry.add_placeholder(Role.STATE, "k_cache.0", b.program.states["k_cache.0"])
    b.done(b.call(aten.neg.default, state))
    with pytest.raises(PassError, match=r"verify_4: neg_default: reads state k_cache_0 past the dspark operators"):
        verify(b.program, "after some_pass")


def test_output_that_is_not_flat(built):
    output = next(iter(reversed(built.entry.graph.graph.nodes)))
    output.args = (built.x,)
    _rejects(built.program, "the output is not a flat tuple")


def test_more_names_than_outputs(built):
    built.entry.outputs = ("logits", "hidden")
    _rejects(built.program, "1 outputs for the names logits, hidden")


def test_output_that_is_no_tensor(built):
    output = next(iter(reversed(built.entry.graph.graph.nodes)))
    output.args = ((1.0,),)
    _rejects(built.program, "output logits is 1.0, not a tensor")


def test_logits_of_too_few_rows(built):
    output = next(iter(reversed(built.entry.graph.graph.nodes)))
    output.args = ((built.call(aten.slice.Tensor, built.x, 1, 0, 2),),)
    _rejects(built.program, "slice_tensor: logits are [1, 2, 8], not [1, 4, vocabulary]")


def test_verify_changes_nothing(built):
    before = str(built.entry.graph.graph)
    verify(built.program, "after some_pass")
    assert str(built.entry.graph.graph) == before
