"""The training target: against sums done by hand, against eager attention, and for every family."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.seam import seam
from dspark_compiler.models import family_of
from dspark_compiler.training.reconstruction import attend, reconstruct, value_lengths
from dspark_compiler.training.sites import Site, find_sites, hidden_states
from tests.tiny_models import TINY, VOCAB

CONTEXT, REQUEST = 11, 3


def texts() -> tuple[Tensor, Tensor]:
    """A context and a request."""
    generator = torch.Generator().manual_seed(5)
    context, request = (torch.randint(0, VOCAB, (n,), generator=generator) for n in (CONTEXT, REQUEST))
    return context, request


def watched(model: PreTrainedModel) -> tuple[tuple[Site, ...], list[tuple[Tensor, Tensor]]]:
    """The sites, and hidden states and target of each layer."""
    taken: list[tuple[Tensor, Tensor]] = []

    def take(layer: int, hidden: Tensor, target: Tensor) -> None:
        assert layer == len(taken)
        taken.append((hidden, target))

    with seam(model, family_of(model.config.model_type)):
        sites = find_sites(model)
        reconstruct(model, sites, *texts(), take)
    return sites, taken


def test_uniform_attention_by_hand() -> None:
    """Queries of zero attend evenly: query j pays 1/(j+1), and over the lengths given, query 3 pays the most."""
    q, k, v = torch.zeros(1, 2, 5, 4), torch.randn(1, 1, 5, 4), torch.randn(1, 1, 5, 4)
    hidden = torch.tensor([9.0, 9.0, 9.0, 0.5, 2.0])[:, None]
    out, importance = attend(q, k, v, 1.0, 0, 0.0, None, 3, hidden)
    torch.testing.assert_close(importance, torch.full((2, 3), (1 / 4) / 0.5))
    torch.testing.assert_close(out[0, 4], v[0, :, :].mean(1).expand(2, -1))


def test_one_strong_match_by_hand() -> None:
    """Head 0's query at 3 has logits (ln 2, 0, 0, 0); a window of 3 hides key 0 from it."""
    q, k = torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1)
    q[0, 0, 3], k[0, 0, 0] = torch.log(torch.tensor(2.0)), 1.0
    ones = torch.ones(4, 1)
    _, seen = attend(q, k, k, 1.0, 0, 0.0, None, 2, ones)
    # Query 2 sees three keys alike; query 3 gives 2/5 to key 0 and 1/5 to key 1.
    torch.testing.assert_close(seen, torch.tensor([[2 / 5, 1 / 3]]))
    _, seen = attend(q, k, k, 1.0, 3, 0.0, None, 2, ones)
    torch.testing.assert_close(seen, torch.tensor([[1 / 3, 1 / 3]]))
    _, seen = attend(q, k, k, 1.0, 0, 0.0, torch.zeros(1), 2, ones)  # a sink takes its part
    torch.testing.assert_close(seen, torch.tensor([[2 / 6, 1 / 4]]))


@pytest.mark.parametrize(("window", "softcap", "sinks"), [(0, 0.0, None), (70, 2.0, None), (0, 0.0, torch.ones(4))])
def test_attention_in_parts_is_attention(window: int, softcap: float, sinks: Tensor | None) -> None:
    q, k, v = torch.randn(1, 4, 600, 8), torch.randn(1, 2, 600, 8), torch.randn(1, 2, 600, 6)
    whole = torch.ops.dspark.attention(q, k, v, 0, 0.3, window, softcap, sinks)
    out, importance = attend(q, k, v, 0.3, window, softcap, sinks, 500, torch.ones(600, 1))
    torch.testing.assert_close(out, whole)
    if softcap == 0.0 and sinks is None:
        weights = ((q @ k.repeat_interleave(2, 1).mT) * 0.3).masked_fill(~torch.ones(600, 600).tril().bool(), -1e9)
        torch.testing.assert_close(importance, weights.softmax(-1)[0, :, 500:, :500].amax(1))


@pytest.mark.parametrize("family", TINY)
def test_every_family_gives_rows(family: str) -> None:
    """The hidden states are what the first projection of each attention reads."""
    model = TINY[family]()
    read: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor]) -> None:
            read.setdefault(layer, args[0][0].clone())

        return hook

    sites, _ = watched(model)
    taken: list[tuple[Tensor, Tensor]] = []
    for layer, site in enumerate(sites):
        for part in site.reader.modules():
            if getattr(part, "weight", None) is not None and part.weight.ndim == 2:
                part.register_forward_pre_hook(keep(layer))
    with seam(model, family_of(model.config.model_type)):
        reconstruct(model, sites, *texts(), lambda _layer, *rows: taken.append(rows))
    assert len(sites) == len(taken) == model.config.get_text_config().num_hidden_layers
    for layer, (hidden, target) in enumerate(taken):
        assert torch.equal(hidden, read[layer][:CONTEXT])
        assert target.shape == (CONTEXT, sites[layer].kv_heads)
        assert torch.isfinite(target).all()
        assert target.max() > -6


def test_llama_against_eager_attention() -> None:
    """The same target from the probabilities and modules of transformers' own eager attention."""
    model = TINY["llama"]()
    _, taken = watched(model)
    context, request = texts()
    hidden: list[Tensor] = []
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_pre_hook(lambda _m, args: hidden.append(args[0][0]))
    out = model(torch.cat([context, request, context])[None], output_attentions=True, use_cache=False)
    for index, (layer, probs) in enumerate(zip(model.model.layers, out.attentions, strict=True)):
        value = layer.self_attn.v_proj(hidden[index]).view(-1, 2, 8)[:CONTEXT]
        wanted = torch.zeros(CONTEXT, 2)
        for head in range(4):
            added = value[:, head // 2] @ layer.self_attn.o_proj.weight[:, 8 * head : 8 * head + 8].T
            paid = probs[0, head, CONTEXT:, :CONTEXT] / hidden[index][CONTEXT:].norm(dim=-1, keepdim=True)
            wanted[:, head // 2] = torch.maximum(wanted[:, head // 2], paid.amax(0) * added.norm(dim=-1))
        torch.testing.assert_close(taken[index][0], hidden[index][:CONTEXT])
        torch.testing.assert_close(taken[index][1], wanted.log(), rtol=1e-4, atol=1e-4)


def test_value_lengths_are_those_of_the_projection() -> None:
    model = TINY["gpt2"]()  # stores weights the other way round, with a bias that adds to no value
    sites, _ = watched(model)
    projection = model.transformer.h[1].attn.c_proj.weight
    value = torch.randn(4, 7, 8)
    wanted = torch.stack([(value[h] @ projection[8 * h : 8 * h + 8]).norm(dim=-1) for h in range(4)])
    torch.testing.assert_close(value_lengths(value, sites[1].gram), wanted, rtol=1e-4, atol=1e-4)


def test_hidden_states_among_arguments() -> None:
    x, y = torch.ones(1), torch.zeros(1)
    assert hidden_states((x, y), {}) is x
    assert hidden_states((), {"other": y, "hidden_states": x}) is x


def test_the_model_is_left_as_it_was() -> None:
    model = TINY["llama"]()
    watched(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.config._attn_implementation == "eager"


def test_attention_that_no_projection_follows() -> None:
    model = TINY["llama"]()
    for layer in model.model.layers:
        layer.self_attn.o_proj = nn.Identity()
    with seam(model, family_of("llama")), pytest.raises(UnsupportedModelError, match=r"no linear .* layer 0, so"):
        find_sites(model)
