"""Our policies beside NVIDIA's kvpress: the same keys, values and queries, the same scores and the same tokens kept.

The cache is one of two sequences, with slots to spare; attention, norms and ranks come from the reference operators
that compiled kernels are tested against.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dspark_compiler.models.surrogate import Affine, Surrogate
from dspark_compiler.passes.kv_policies import POLICIES
from dspark_compiler.passes.kv_policies.base import Policy, SlotView
from dspark_compiler.passes.kv_policies.kvzap import KVzap
from dspark_compiler.passes.kv_policies.layer import LayerCache, Rotation
from dspark_compiler.passes.kv_policies.pyramid import pyramid_budgets
from tests.kvpress_oracle import GROUPS, HEAD_DIM, HEADS, HIDDEN, Layer, attention_layer, kvpress

dspark = torch.ops.dspark

TOKENS, SLOTS, SEQUENCE = 150, 160, 1
SINKS, SNAP_WINDOW, AHEAD = 4, 64, 512


@pytest.fixture(scope="module")
def press() -> Iterator[Any]:
    """``press("knorm_press", "KnormPress", **options)`` is a press that removes two of five tokens."""
    with kvpress() as found:
        yield lambda module, name, **options: found(module, name)(compression_ratio=0.4, **options)


@pytest.fixture(scope="module")
def layer() -> Layer:
    return attention_layer(TOKENS)


def number(value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int32)


def cached(rows: Tensor, fill: float) -> Tensor:
    """A state of two sequences whose second one holds rows [1,X,T,...], and ``fill`` in what is not in use."""
    state = torch.full((2, rows.shape[1], SLOTS, *rows.shape[3:]), fill, dtype=rows.dtype)
    state[SEQUENCE, :, :TOKENS] = rows[0]
    return state


def view_of(policy: Policy, layer: Layer, places: int | None = None) -> SlotView:
    """What ``policy`` sees of the layer's cache when all tokens have just come; its ring has ``places``."""
    ring = None
    if policy.ring:
        places = places or (TOKENS if policy.ring == "all" else policy.ring)
        ring = torch.full((2, HEADS, places, HEAD_DIM), 7.0)
        queries = layer.plain if policy.queries == "plain" else layer.query
        dspark.append_queries(ring, queries, number(SEQUENCE), number(0), number(TOKENS))
    angle = layer.module.rotary_emb.inv_freq.repeat(2)
    ahead = torch.arange(AHEAD)[:, None] * angle
    cache = LayerCache(
        k_cache=cached(layer.key, 3.0),
        v_cache=cached(layer.value, 3.0),
        slot_position=cached(torch.arange(TOKENS, dtype=torch.int32).expand(1, GROUPS, -1), 0),
        slot_score=torch.full((2, GROUPS, SLOTS), 5.0),
        ring=ring,
        rope=Rotation(angle, ahead.cos().mean(0), ahead.sin().mean(0)),
        scale=HEAD_DIM**-0.5,
    )
    return SlotView(cache, number(SEQUENCE), number(TOKENS), number(SLOTS - TOKENS), pending=number(TOKENS))


def policy_of(name: str) -> Policy:
    return POLICIES[name](None)


def kept(view: SlotView, score: Tensor, tokens: int, first: int, last: int) -> list[list[int]]:
    """The positions left per head when ``tokens`` stay, the first and last of which are protected."""
    need = number(SLOTS - tokens)
    place = (view.layer.slot_position, view.sequence, view.length, view.free)
    source = dspark.select_slots(score, *place, need, first, last)
    return [row[row >= 0].tolist() for row in source[0]]


# Name, press, how many tokens at either end the press scores as never to go, and places of the ring if it matters:
# the press leaves the first queries out of its statistics.
CASES = [
    ("knorm", "knorm_press", "KnormPress", 0, 0, None),
    ("keydiff", "keydiff_press", "KeyDiffPress", 0, 0, None),
    ("tova", "tova_press", "TOVAPress", 0, 1, None),
    ("h2o", "observed_attention_press", "ObservedAttentionPress", 0, 0, None),
    ("snapkv", "snapkv_press", "SnapKVPress", 0, SNAP_WINDOW, None),
    ("expected-attention", "expected_attention_press", "ExpectedAttentionPress", SINKS, 0, TOKENS - SINKS),
]


@pytest.mark.parametrize(("name", "module", "cls", "first", "last", "places"), CASES)
def test_same_scores_and_tokens(
    press: Any, layer: Layer, name: str, module: str, cls: str, first: int, last: int, places: int | None
) -> None:
    asked = press(module, cls)
    wanted = layer.asked(asked)
    view = view_of(policy_of(name), layer, places)
    found = policy_of(name).score(view)
    assert found.shape == (1, GROUPS, SLOTS)
    scored = slice(first, TOKENS - last)
    assert len(wanted[0, 0, scored].unique()) > 50
    torch.testing.assert_close(found[:, :, scored], wanted[:, :, scored], rtol=2e-5, atol=1e-7)
    remaining = layer.kept(asked)
    assert [len(row) for row in remaining] == [TOKENS * 6 // 10] * GROUPS
    assert kept(view, found, TOKENS * 6 // 10, first, last) == remaining


def test_tova_and_snapkv_need_no_probabilities_from_the_model(press: Any, layer: Layer) -> None:
    """kvpress computes the window's attention itself where the model gives none; so do we, always."""
    for name, module, cls, last in (
        ("tova", "tova_press", "TOVAPress", 1),
        ("snapkv", "snapkv_press", "SnapKVPress", SNAP_WINDOW),
    ):
        wanted = layer.asked(press(module, cls), attentions=False)
        found = policy_of(name).score(view_of(policy_of(name), layer))
        torch.testing.assert_close(found[:, :, : TOKENS - last], wanted[:, :, : TOKENS - last], rtol=2e-5, atol=1e-7)


def test_the_window_keeps_the_same_tokens(press: Any, layer: Layer) -> None:
    view = view_of(policy_of("window"), layer)
    found = kept(view, policy_of("window").score(view), TOKENS * 6 // 10, SINKS, 0)
    assert found == layer.kept(press("streaming_llm_press", "StreamingLLMPress", n_sink=SINKS))


@pytest.mark.parametrize("tokens", [4000, 9000])
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.2])
def test_pyramid_budgets(press: Any, tokens: int, ratio: float) -> None:
    """The press counts the window apart, and rounds where we round down."""
    layers = 30
    asked = press("pyramidkv_press", "PyramidKVPress", window_size=32)
    asked.compression_ratio = ratio
    wanted = [asked.get_layer_budget(attention_layer(2, layer, layers).module, tokens) for layer in range(layers)]
    mean = asked.window_size + round(tokens * (1 - ratio))
    found = pyramid_budgets(mean, layers, asked.window_size, tokens)
    assert sum(found) <= mean * layers
    assert wanted[0] > 1.2 * wanted[-1]
    for ours, theirs in zip(found, wanted, strict=True):
        assert abs(ours - asked.window_size - theirs) <= 1


def test_kvzap(press: Any, layer: Layer) -> None:
    """The same network on the same hidden states; kvpress is given ours, gelu in its tanh form."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((8, HIDDEN), (GROUPS, 8))
    affines = [
        Affine(torch.randn(*shape, generator=generator), torch.randn(shape[0], generator=generator)) for shape in shapes
    ]
    surrogate = Surrogate("toy", HIDDEN, GROUPS, (tuple(affines),) * 2, {}, (0.0, 0.0), (0.0, 0.0))
    up, down = (torch.nn.Linear(shape[1], shape[0]) for shape in shapes)
    for linear, affine in zip((up, down), affines, strict=True):
        linear.load_state_dict({"weight": affine.weight, "bias": affine.bias})
    asked = press("kvzap_press", "KVzapPress")
    network = torch.nn.Sequential(up, torch.nn.GELU(approximate="tanh"), down)
    asked.kvzap_model = torch.nn.Module()
    asked.kvzap_model.layers = torch.nn.ModuleList([network, network]).requires_grad_(False)
    wanted = layer.asked(asked)
    policy = KVzap(Path("weights"), surrogate)
    view = view_of(policy, layer)
    come = surrogate.score(layer.module.layer_idx, layer.hidden).transpose(1, 2)[..., None]
    written = (number(SEQUENCE), number(0), number(TOKENS), number(SLOTS))
    dspark.append_slot_scores(view.layer.slot_score, come, *written)
    found = policy.score(view)
    torch.testing.assert_close(found[:, :, :TOKENS], wanted)
    assert kept(view, found, TOKENS * 6 // 10, 0, 0) == layer.kept(asked)
