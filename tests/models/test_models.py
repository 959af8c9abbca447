import json

import pytest
from transformers import GenerationConfig, GPT2Config, LlamaConfig

from dspark_compiler.models import FAMILIES, GENERIC, ModelInfo, eos_token_ids, family_of
from tests.tiny_models import TINY


def test_every_family_has_a_tiny_model_and_none_is_left_out():
    assert {make().config.model_type for make in TINY.values()} == set(FAMILIES)


def test_an_unknown_type_takes_the_generic_route():
    assert family_of("starcoder2") is GENERIC
    assert family_of("gemma2").title == "Gemma 2"


def test_info_reads_the_config_and_survives_json():
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=3, max_position_embeddings=64, eos_token_id=7
    )
    config.architectures = ["LlamaForCausalLM"]
    info = ModelInfo.from_config("mine", config, None)
    assert (info.vocab_size, info.hidden_size, info.num_layers, info.max_positions) == (100, 32, 3, 64)
    assert json.loads(json.dumps(info.to_json()))["eos_token_ids"] == [7]
    assert info.architecture == "LlamaForCausalLM"


def test_info_knows_the_other_names_of_a_config():
    info = ModelInfo.from_config("two", GPT2Config(n_embd=32, n_layer=5, n_positions=77), None)
    assert (info.hidden_size, info.num_layers, info.max_positions) == (32, 5, 77)
    assert info.architecture == "GPT2LMHeadModel"


@pytest.mark.parametrize(
    ("in_generation", "in_config", "expected"),
    [([5, 6], 7, (5, 6)), (5, 7, (5,)), (None, 7, (7,)), (None, None, ()), (0, 7, (0,))],
)
def test_the_generation_config_says_what_ends_a_sequence(in_generation, in_config, expected):
    generation = GenerationConfig(eos_token_id=in_generation)
    assert eos_token_ids(LlamaConfig(eos_token_id=in_config), generation) == expected
