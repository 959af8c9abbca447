import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, T5Config
from transformers.utils import logging

from dspark_compiler.errors import InputError, UnsupportedModelError
from dspark_compiler.frontend.source import open_source
from tests.tiny_models import TINY


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "tiny-llama"
    model = TINY["llama"]()
    model.generation_config.eos_token_id = [2, 5]
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "hello": 1, "world": 2}, unk_token="<s>"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    fast.chat_template = "{{ messages }}"
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "tiny-llama"))


@pytest.fixture
def sharded(tmp_path):
    TINY["llama"]().save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    return tmp_path / "sharded"


def refused(path, match, error=InputError, step=open_source):
    with pytest.raises(error, match=match) as caught:
        step(str(path))
    assert "\n" not in str(caught.value)


def load(path):
    return open_source(path).load(torch.float32)


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            content.pop(key)
        else:
            content[key] = value
    path.write_text(json.dumps(content))


def edit_tensors(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_folder_loads_as_it_was_saved(folder):
    source = open_source(str(folder))
    model = source.load(torch.float32, "eager")
    assert same_weights(model, TINY["llama"]())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == "eager"
    assert (source.name, source.max_positions, source.eos_token_ids) == ("tiny-llama", 96, (2, 5))
    assert source.info.architecture == "LlamaForCausalLM"


def test_a_folder_loads_in_the_type_asked_for(folder):
    model = open_source(str(folder)).load(torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_sharded_folder_loads(sharded):
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    assert same_weights(open_source(str(sharded)).load(torch.float32), TINY["llama"]())


def test_tied_weights_are_not_missing(tmp_path):
    model = TINY["llama-tied"]()
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert same_weights(open_source(str(tmp_path)).load(torch.float32), model)


def test_loading_is_silent_and_leaves_logging_alone(folder, capfd):
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    open_source(str(folder)).load(torch.float32)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_tokenizer_files_are_copied_as_they_are(folder, tmp_path):
    names = open_source(str(folder)).write_tokenizer(tmp_path)
    assert names == ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_an_older_tokenizer_is_converted(tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    out.mkdir()
    TINY["gpt2"]().save_pretrained(model)
    (model / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}))
    (model / "merges.txt").write_text("#version: 0.2\na b\n")
    names = open_source(str(model)).write_tokenizer(out)
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(names)
    assert {p.name for p in out.iterdir()} == set(names)
    assert Tokenizer.from_file(str(out / "tokenizer.json")).encode("ab").ids == [3]


def test_a_source_without_a_tokenizer_writes_none(sharded, tmp_path):
    (sharded / "generation_config.json").unlink()
    assert open_source(str(sharded)).write_tokenizer(tmp_path) == []


def test_no_such_path():
    refused("nowhere", "nowhere: no such file or folder")
    refused("/nowhere/model.gguf", "no such file or folder")


def test_a_hub_id_is_downloaded(saved, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "dspark_compiler.frontend.folder.snapshot_download", lambda *a, **k: asked.append((a, k)) or str(saved)
    )
    assert open_source("owner/some-model").name == "some-model"
    (((repository,), options),) = asked
    assert repository == "owner/some-model"
    assert "*.safetensors" in options["allow_patterns"]
    assert not any("*.bin" in pattern for pattern in options["allow_patterns"])


def test_a_hub_id_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused("owner/some-model", "owner/some-model: no such folder here, and the hub cannot be reached; download")


def test_a_folder_without_a_config(folder):
    (folder / "config.json").unlink()
    refused(folder, r"tiny-llama: no config\.json")


def test_a_config_that_is_not_json(folder):
    (folder / "config.json").write_text("{")
    refused(folder, r"config\.json: not readable as JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, r"config\.json: a JSON list where an object")


def test_a_config_that_makes_no_sense(folder):
    edit_json(folder / "config.json", num_attention_heads=5)
    refused(folder, r"config\.json: not a valid llama config")


def test_a_config_without_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "a config without weights")
    (folder / "pytorch_model.bin").touch()
    refused(folder, "only as pickled pytorch_model files; convert them to safetensors")


def test_a_missing_shard(sharded):
    victim = sorted(sharded.glob("model-*.safetensors"))[1]
    victim.unlink()
    refused(sharded, f"{victim.name} is missing")


@pytest.mark.parametrize("kept", [0, 4, 200, -100])
def test_truncated_weights(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(folder, r"model\.safetensors: cut short or damaged .*; fetch the file again")


def test_an_unknown_architecture(folder):
    edit_json(folder / "config.json", model_type="never_heard_of")
    refused(folder, "model_type 'never_heard_of' is unknown", UnsupportedModelError)
    edit_json(folder / "config.json", model_type=None)
    refused(folder, "model_type None is unknown", UnsupportedModelError)


def test_not_a_causal_language_model(tmp_path):
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    refused(tmp_path, "BertForMaskedLM is not a causal language model", UnsupportedModelError)
    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(tmp_path)
    refused(tmp_path, "T5ForConditionalGeneration is not a causal language model", UnsupportedModelError)


def test_quantized_weights(folder):
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    refused(folder, "weights quantized with gptq; give the unquantized checkpoint", UnsupportedModelError)


def mxfp4(weight, generator):
    """Random mxfp4 blocks and scales for a weight [E, in, out], and the numbers they stand for (OCP MX, E2M1)."""
    experts, inner, outer = weight.shape
    blocks = torch.randint(0, 256, (experts, outer, inner // 32, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(120, 128, (experts, outer, inner // 32), dtype=torch.uint8, generator=generator)
    positive = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([positive, -positive])
    pairs = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], dim=-1)
    numbers = pairs.reshape(*scales.shape, 32) * torch.exp2(scales.float() - 127)[..., None]
    return blocks, scales, numbers.reshape(experts, outer, inner).mT


def test_mxfp4_experts_are_read_as_numbers(tmp_path):
    TINY["gpt_oss"]().save_pretrained(tmp_path)
    want = {}

    def edit(tensors):
        generator = torch.Generator().manual_seed(0)
        for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
            blocks, scales, want[name] = mxfp4(tensors.pop(name), generator)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}

    edit_tensors(tmp_path / "model.safetensors", edit)
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": "mxfp4"})
    model = open_source(str(tmp_path)).load(torch.float32)
    assert len(want) == 4
    for name, numbers in want.items():
        assert torch.equal(model.state_dict()[name], numbers)
    assert not hasattr(model.config, "quantization_config")


def test_missing_tensors(folder):
    def edit(tensors):
        for layer in (0, 1):
            for name in ("q", "k"):
                del tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"]

    edit_tensors(folder / "model.safetensors", edit)
    match = r"missing from the checkpoint: model\.layers\.0\.self_attn\.k_proj\.weight, .* and 1 more;"
    refused(folder, match, step=load)


def test_unexpected_tensors(folder):
    edit_tensors(folder / "model.safetensors", lambda t: t.update({"model.layers.9.extra": torch.zeros(2)}))
    refused(folder, r"tensors have no place in the model: model\.layers\.9\.extra;", step=load)


def test_tensors_of_another_shape(folder):
    edit_tensors(folder / "model.safetensors", lambda t: t.update({"lm_head.weight": torch.zeros(7, 32)}))
    refused(folder, r"another shape than the config says: lm_head\.weight \(7, 32\) for \(128, 32\)", step=load)
