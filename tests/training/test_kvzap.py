"""``dspark kvzap train``: a surrogate that predicts on unseen text, the same for the same seed, and clear refusals."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import LlamaConfig, LlamaForCausalLM

from dspark_compiler import cli
from dspark_compiler.errors import InputError
from dspark_compiler.models.surrogate import read_surrogate
from dspark_compiler.training.kvzap import TrainingOptions
from tests.runtime import toy

K, LAYERS, G = 32, 2, 2
WORDS = ("the", "king", "of", "Norway", "sailed", "west", "with", "forty", "ships", "and", "never", "returned.")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a byte-level tokenizer."""
    config = LlamaConfig(
        vocab_size=toy.V,
        hidden_size=K,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=G,
        max_position_embeddings=160,
        bos_token_id=toy.BOS,
        eos_token_id=toy.EOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = LlamaForCausalLM(config)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    path = tmp_path_factory.mktemp("kvzap") / "tiny"
    made.save_pretrained(path)
    (path / "tokenizer.json").write_text(toy.tokenizer().to_str(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "saga.txt"
    order = torch.randint(len(WORDS), (400,), generator=torch.Generator().manual_seed(2))
    file.write_text(" ".join(WORDS[i] for i in order.tolist()), encoding="utf-8")
    return file


def train(model: Path, text: Path, output: Path, *more: str) -> Result:
    args = ["kvzap", "train", str(model), "--data", str(text), "-o", str(output), "--length", "48", *more]
    return CliRunner().invoke(cli.main, args)


def test_a_surrogate_is_trained(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    result = train(model, text, out, "--documents", "16", "--steps", "150", "--seed", "4")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out}: on text kept from training, correlation 0.")
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [
        "read text",
        "load model",
        "watch the model",
        "fit",
    ]
    found = read_surrogate(out)
    found.check_fits(str(out), K, LAYERS, G)
    assert found.model == "tiny"
    assert found.layers[0][0].weight.shape == (K // 8, K)
    assert dict(found.training) == {
        "documents": 16,
        "length": 48,
        "hidden": K // 8,
        "steps": 150,
        "seed": 4,
        "data": ["saga.txt"],
    }
    assert min(found.correlation) > 0.2
    again, other = tmp_path / "again.safetensors", tmp_path / "other.safetensors"
    assert train(model, text, again, "--documents", "16", "--steps", "150", "--seed", "4").exit_code == 0
    assert train(model, text, other, "--documents", "16", "--steps", "150", "--seed", "5").exit_code == 0
    assert torch.equal(read_surrogate(again).layers[1][0].weight, found.layers[1][0].weight)
    assert not torch.equal(read_surrogate(other).layers[1][0].weight, found.layers[1][0].weight)


def test_a_linear_one(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    assert train(model, text, out, "--documents", "4", "--steps", "5", "--hidden", "0").exit_code == 0
    found = read_surrogate(out)
    assert [len(layer) for layer in found.layers] == [1, 1]
    assert found.training["hidden"] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--length", "70"), "--length 70: tiny reads 160 tokens, and has to see each document twice; give at most 61"),
        (("--documents", "900"), "documents of 48 tokens, 900 are wanted; give more text, or smaller --documents"),
        (("--documents", "1"), "--documents 1: must be at least 2"),
        (("--length", "15"), "--length 15: must be at least 16"),
        (("--hidden", "-1"), "--hidden -1: must be at least 0"),
        (("--steps", "0"), "--steps 0: must be at least 1"),
        (("--seed", "-1"), "--seed -1: must be at least 0"),
        (("--data", "/none.txt"), "--data /none.txt: No such file"),
        (("-o", "s.bin"), "--output s.bin: give a .safetensors file in a folder that exists"),
        (("-o", "/none/s.safetensors"), "--output /none/s.safetensors: give a .safetensors file in a folder that"),
    ],
)
def test_refusals(model: Path, text: Path, tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    result = train(model, text, tmp_path / "s.safetensors", *more)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_tokenizer(model: Path, text: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    result = train(bare, text, tmp_path / "s.safetensors")
    assert result.exit_code == 2
    assert "has no tokenizer, so it cannot read text" in result.stderr


def test_texts_by_line(model: Path, tmp_path: Path) -> None:
    """Lines of a .jsonl file are texts of their own: 60 bytes hold one document of 48 tokens each."""
    lines = tmp_path / "t.jsonl"
    lines.write_text("\n".join(json.dumps({"text": chr(97 + i) * 60}) for i in range(3)))
    assert train(model, lines, tmp_path / "s.safetensors", "--documents", "3", "--steps", "1").exit_code == 0
    result = train(model, lines, tmp_path / "s.safetensors", "--documents", "4", "--steps", "1")
    assert "gives 3 documents of 48 tokens, 4 are wanted" in result.stderr


def test_defaults_are_valid() -> None:
    assert TrainingOptions().hidden is None
    with pytest.raises(InputError, match="--documents 0"):
        TrainingOptions(documents=0)
