"""Operators on the cache are read the same whether their arguments come by place or by name; mixtures are refused."""

import pytest
import torch
from torch import fx

from dspark_compiler.errors import LoweringError
from dspark_compiler.graph import ops  # noqa: F401 - defines torch.ops.dspark
from dspark_compiler.graph.rewrite import bound_args
from dspark_compiler.lowering.nodes import tensor_args, written_args
from dspark_compiler.lowering.storage import cache_form
from dspark_compiler.schedules.attention_shape import CacheForm
from dspark_compiler.schedules.cache_storage import E4M3FN

_COMMIT = ("k_cache", "v_cache", "k_scratch", "v_scratch", "length", "accepted")


def _node(args: list[str | None], kwargs: list[str], dtype: torch.dtype = torch.float8_e4m3fn) -> fx.Node:
    graph = fx.Graph()
    made = {name: graph.placeholder(name) for name in (*args, *kwargs) if name is not None}
    for name, node in made.items():
        stored = dtype if name in _COMMIT[:4] else torch.float32
        node.meta["val"] = torch.empty(1, dtype=stored, device="meta")
    positional = tuple(None if name is None else made[name] for name in args)
    target = torch.ops.dspark.commit_scratch.default
    return graph.call_function(target, positional, {name: made[name] for name in kwargs})


def _names(node: fx.Node) -> dict[str, str | None]:
    return {name: value and str(value) for name, value in bound_args(node).items()}


def test_arguments_by_place_and_by_name_are_the_same() -> None:
    by_name = _node([*_COMMIT], ["v_scale", "k_scale"])
    by_place = _node([*_COMMIT, None, None, "k_scale", "v_scale"], [])
    assert _names(by_name) == _names(by_place)
    assert list(tensor_args(by_name)) == [*_COMMIT, "k_scale", "v_scale"], "in the schema's order"
    assert written_args(by_name) == written_args(by_place) == (0, 1, 6, 7)
    assert written_args(_node([*_COMMIT], ["free", "slot_position"])) == (0, 1, 7)


def test_the_form_of_a_cache_is_what_is_given() -> None:
    names = ["free", "slot_position", "k_scale", "v_scale"]
    assert cache_form(tensor_args(_node([*_COMMIT], names))) == CacheForm(E4M3FN, free=True, slot_position=True)
    assert cache_form(tensor_args(_node([*_COMMIT], [], torch.float32))) == CacheForm()


@pytest.mark.parametrize(
    ("kwargs", "dtype", "message"),
    [
        ([], torch.int8, "a quantized cache, and no other, has scales"),
        (["k_scale", "v_scale"], torch.float32, "a quantized cache, and no other, has scales"),
        ([], torch.bfloat16, r"is stored as torch\.bfloat16, not one of float32, int8, float8_e4m3fn"),
    ],
)
def test_what_is_no_cache(kwargs: list[str], dtype: torch.dtype, message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        cache_form(tensor_args(_node([*_COMMIT], kwargs, dtype)))
