"""Published checkpoints: what is read is what is there, and what our drafters would run differently is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dspark_compiler.errors import InputError
from dspark_compiler.models.drafters.checkpoint import read_heads
from dspark_compiler.models.drafters.deepspec import is_deepspec, read_deepspec
from tests.models.drafters import published

PLAIN_ROPE = {"rope_parameters": None, "rope_theta": 5e5}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}


@pytest.mark.parametrize("config", [published.QWEN3, published.GEMMA4, published.EAGLE3])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_tensor_finds_its_place(tmp_path: Path, config: dict[str, Any], sharded: bool) -> None:
    own = published.write(tmp_path, config)
    if sharded:
        published.shard(tmp_path)
    assert is_deepspec(tmp_path)
    state = read_deepspec(tmp_path).heads.drafter.state_dict()
    assert state.keys() == own.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, own[name].float()), name


def config_of(tmp_path: Path, base: dict[str, Any], **changes: Any) -> Any:
    published.write(tmp_path, base | changes)
    return read_deepspec(tmp_path).heads.drafter.config


def test_config_of_qwen3(tmp_path: Path) -> None:
    config = config_of(tmp_path, published.QWEN3)
    assert (config.drafter_type, config.backbone, config.block_size) == ("dspark", "qwen3", 4)
    assert (config.target_layer_ids, config.num_target_layers, config.mask_token_id) == ((-1, 0), 2, 126)
    assert (config.markov_rank, config.markov_head_type, config.confidence_head_with_markov) == (6, "gated", True)
    assert (config.head_dim, config.num_key_value_heads, config.hidden_act) == (16, 2, "silu")
    assert config.rope == {"rope_theta": 1000000.0, "rope_type": "default"}


def test_config_of_gemma4(tmp_path: Path) -> None:
    config = config_of(tmp_path, published.GEMMA4)
    assert (config.backbone, config.head_dim, config.num_key_value_heads) == ("gemma4", 24, 1)
    assert (config.attention_k_eq_v, config.hidden_act) == (True, "gelu_pytorch_tanh")
    assert (config.rope["rope_type"], config.rope["partial_rotary_factor"]) == ("proportional", 0.25)
    own_values = config_of(tmp_path, published.GEMMA4, attention_k_eq_v=False)
    assert (own_values.attention_k_eq_v, own_values.num_key_value_heads) == (False, 2)


def test_config_of_eagle3(tmp_path: Path) -> None:
    config = config_of(tmp_path, published.EAGLE3)
    assert (config.drafter_type, config.backbone, config.block_size) == ("eagle3", "qwen3", 5)
    gemma = published.GEMMA4 | published.EAGLE3 | {"architectures": ["Gemma4Eagle3Model"], "model_type": "gemma4_text"}
    gemma |= {"rope_parameters": published.GEMMA4["rope_parameters"]}
    assert config_of(tmp_path, gemma).head_dim == 24
    with pytest.raises(InputError, match="num_hidden_layers: 2, but an eagle3 drafter has 1"):
        config_of(tmp_path, published.EAGLE3, num_hidden_layers=2, layer_types=None)


def test_gemma4_sizes_a_layer(tmp_path: Path) -> None:
    sizes = {"head_dim": 24, "num_key_value_heads": 1}
    config = config_of(tmp_path, published.GEMMA4, per_layer_config={"0": sizes, "1": sizes}, global_head_dim=None)
    assert (config.head_dim, config.num_key_value_heads) == (24, 1)


def test_other_forms_of_config(tmp_path: Path) -> None:
    assert config_of(tmp_path, published.QWEN3, **PLAIN_ROPE).rope == {"rope_type": "default", "rope_theta": 5e5}
    yarn = config_of(tmp_path, published.QWEN3, **PLAIN_ROPE, rope_scaling=YARN).rope
    assert (yarn["rope_type"], yarn["factor"], yarn["max_position_embeddings"]) == ("yarn", 4.0, 96)
    dflash = config_of(tmp_path, published.QWEN3, markov_rank=0, enable_confidence_head=False, markov_head_type=None)
    assert (dflash.markov_rank, dflash.enable_confidence_head, dflash.confidence_head_with_markov) == (0, False, False)
    llama = {"architectures": ["LlamaDSparkModel"], "model_type": "llama", "head_dim": None}
    assert config_of(tmp_path, published.QWEN3, **llama).head_dim == 8


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        kept = {name: value for name, value in (published.QWEN3 | changes).items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return edit


def edit_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def lose_a_shard(folder: Path) -> None:
    published.shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def lose_a_tensor(folder: Path) -> None:
    published.shard(folder)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["layers.9.norm"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(places))


W2 = "markov_head.markov_w2.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json; give the folder of a DeepSpec checkpoint"),
        (lambda f: (f / "config.json").write_text("{,"), "config.json: not valid JSON"),
        (edit_config(architectures=["DFlashDraftModel"]), "architecture DFlashDraftModel is not one that can be"),
        (edit_config(architectures=None), "architecture unnamed is not one that can be"),
        (edit_config(block_size=...), "block_size: missing"),
        (edit_config(markov_rank="6"), "markov_rank: '6' is no int"),
        (edit_config(mask_token_id=True), "mask_token_id: True is no int"),
        (edit_config(target_layer_ids=[0.5]), r"target_layer_ids: \[0.5\] is no list of integers"),
        (edit_config(confidence_head_with_markov=...), "confidence_head_with_markov: missing"),
        (edit_config(markov_head_type="lstm"), "markov_head_type: 'lstm' is not one of vanilla, gated, rnn"),
        (edit_config(layer_types=["sliding_attention"] * 2), "layer_types: sliding_attention; drafters of full"),
        (edit_config(mlp_bias=True), "mlp_bias: drafters have none"),
        (edit_config(rope_parameters=3), "rope_parameters: 3 is no object"),
        (edit_config(rope_parameters=...), "rope_theta: missing"),
        (edit_config(target_layer_ids=[0, 1]), "target_layer_ids: 1 is the target's last layer"),
        (edit_config(mask_token_id=128), "mask_token_id: 128 lies outside the vocabulary of 128"),
        (edit_config(markov_rank=0), "confidence_head_with_markov: needs a confidence head and a markov_rank"),
        (edit_config(markov_rank=0, confidence_head_with_markov=False), "tensor markov_head.* has no place"),
        (edit_config(enable_confidence_head=False), "tensor confidence_head.proj.bias has no place .*and 1 more"),
        (edit_tensors(lambda t: t.pop(W2)), f"tensor {W2} is missing"),
        (edit_tensors(lambda t: t.update({W2: t[W2].to(torch.int8)})), f"tensor {W2} is int8; only bfloat16"),
        (
            edit_tensors(lambda t: t.update({W2: t[W2].to(torch.float8_e4m3fn)})),
            f"tensor {W2} is float8_e4m3fn; only bfloat16",
        ),
        (edit_tensors(lambda t: t.update({"embed_tokens.weight": torch.ones(3, 4)})), r"embed_tokens.weight has shape"),
        (lose_a_shard, "model-00002-of-00002.safetensors: no such file"),
        (lose_a_tensor, "tensor layers.9.norm is in none of its shards"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "not an index of shards"),
    ],
)
def test_what_is_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    published.write(tmp_path, published.QWEN3)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_deepspec(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enable_moe_block": True}, "enable_moe_block: True, drafters have False"),
        ({"hidden_size_per_layer_input": 8}, "hidden_size_per_layer_input: 8, drafters have 0"),
        ({"per_layer_config": {"0": {"head_dim": 8}, "1": {}}}, "per_layer_config: layers of different sizes"),
        ({"num_global_key_value_heads": None}, "num_global_key_value_heads: missing"),
    ],
)
def test_gemma4_layers_that_are_not_ours(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published.GEMMA4 | changes))
    with pytest.raises(InputError, match=message):
        read_deepspec(tmp_path)


def test_a_checkpoint_is_not_mistaken_for_heads(tmp_path: Path) -> None:
    published.write(tmp_path, published.QWEN3)
    with pytest.raises(InputError, match="dspark heads import reads published ones"):
        read_heads(tmp_path)
    assert not is_deepspec(tmp_path / "none")
