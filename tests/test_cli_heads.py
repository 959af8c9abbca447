"""dspark heads: importing a published checkpoint, and looking at heads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark_compiler.models.drafters.checkpoint import read_heads, write_calibration, write_heads
from dspark_compiler.models.drafters.heads import Calibration
from tests.models.drafters import published, tiny
from tests.test_cli import dspark, refused
from tests.tiny_models import TINY


@pytest.fixture
def model(tmp_path: Path) -> Path:
    TINY["qwen3"]().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    published.write(tmp_path / "published", published.QWEN3, TINY["qwen3"]())
    return tmp_path / "published"


def test_import_and_inspect(tmp_path: Path, model: Path, checkpoint: Path) -> None:
    output = tmp_path / "heads"
    result = dspark("heads", "import", str(checkpoint), "-o", str(output), "--model", str(model))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{output}: dspark on qwen3, 4 tokens a block; made for model\n"
    heads = read_heads(output)
    assert (heads.target.name, heads.target.hidden_size, heads.target.tokenizer_sha256) == ("model", 32, None)
    assert heads.training == {"imported": "published"}
    own = load_file(output / "model.safetensors")
    assert "embed_tokens.weight" not in own
    assert torch.equal(own["fc.weight"], load_file(checkpoint / "model.safetensors")["fc.weight"])
    shown = json.loads(dspark("heads", "inspect", str(output), "--json").stdout)
    assert shown["kind"] == "decode heads"
    assert shown["parameters"]["count"] == sum(tensor.numel() for tensor in own.values())
    assert shown["parameters"]["bytes"] == 2 * shown["parameters"]["count"]
    assert shown["parameters"]["parts"]["fc"] == {"count": 2 * 32 * 32, "bytes": 4 * 32 * 32}
    unimported = json.loads(dspark("heads", "inspect", str(checkpoint), "--json").stdout)
    assert unimported["kind"] == "DeepSpec checkpoint"
    assert unimported["drafter"] == shown["drafter"]


def test_import_without_a_model_says_that_nothing_was_compared(tmp_path: Path, checkpoint: Path) -> None:
    result = dspark("heads", "import", str(checkpoint), "-o", str(tmp_path / "heads"))
    assert result.exit_code == 0
    assert "nothing was compared with a model" in result.stdout
    assert read_heads(tmp_path / "heads").target.num_layers == 2


def edit(checkpoint: Path, name: str) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[name][5, 3] *= 1.5
    save_file(tensors, checkpoint / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embed_tokens.weight", "its embedding (embed_tokens.weight) is not that of model: 1 rows differ, the first"),
        ("lm_head.weight", "its head (lm_head.weight) is not that of model: 1 rows differ, the first that of token 5"),
    ],
)
def test_import_of_heads_with_another_embedding_or_head(
    tmp_path: Path, model: Path, checkpoint: Path, name: str, message: str
) -> None:
    edit(checkpoint, name)
    refused(dspark("heads", "import", str(checkpoint), "-o", str(tmp_path / "h"), "--model", str(model)), message)
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 48}, "made for another model (hidden size: 48), model has 32"),
        ({"vocab_size": 130}, "made for another model (vocabulary: 130), model has 128"),
        ({"num_target_layers": 3}, "made for another model (layers: 3), model has 2"),
    ],
)
def test_import_of_heads_for_another_model(tmp_path: Path, model: Path, changes: dict[str, Any], message: str) -> None:
    published.write(tmp_path / "published", published.QWEN3 | changes)
    source = str(tmp_path / "published")
    refused(dspark("heads", "import", source, "-o", str(tmp_path / "h"), "--model", str(model)), message)


def test_import_of_nothing_and_over_something(tmp_path: Path, model: Path, checkpoint: Path) -> None:
    refused(dspark("heads", "import", str(checkpoint), "-o", str(model)), "model: is a folder but holds no decode")
    assert (model / "model.safetensors").is_file()
    file = str(model / "config.json")
    refused(dspark("heads", "import", file, "-o", str(tmp_path / "h")), "config.json: is a file; give the folder")
    refused(dspark("heads", "import", str(model), "-o", str(tmp_path / "h")), "architecture Qwen3ForCausalLM is not")


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_inspect_shows_heads_of_each_kind(tmp_path: Path, name: str) -> None:
    write_heads(tmp_path / "heads", tiny.heads(name))
    result = dspark("heads", "inspect", str(tmp_path / "heads"))
    assert result.exit_code == 0
    config = tiny.CONFIGS[name]
    for text in (config.drafter_type, config.backbone, "4 tokens (gamma)", "tiny", "abababababab", "steps"):
        assert text in result.stdout
    assert ("not calibrated yet" in result.stdout) == config.enable_confidence_head


def test_inspect_shows_a_calibration(tmp_path: Path) -> None:
    write_heads(tmp_path / "heads", tiny.heads())
    four = (0.125, 0.25, 0.5, 0.75)
    for temperatures, text in ((four, "0.125 0.250 0.500 0.750"), ((), "not applied: they did not help")):
        write_calibration(tmp_path / "heads", Calibration(temperatures, (0.3,) * 4, (0.2,) * 4, (0.7,) * 4))
        shown = dspark("heads", "inspect", str(tmp_path / "heads")).stdout
        assert text in shown
        assert "0.700 0.700" in shown
        assert "shifts" not in shown
    write_calibration(tmp_path / "heads", Calibration(four, (0.3,) * 4, (0.2,) * 4, (0.7,) * 4, (0.1, -0.2, 0.0, 0.4)))
    assert "0.100 -0.200 0.000 0.400" in dspark("heads", "inspect", str(tmp_path / "heads")).stdout


def test_inspect_of_what_is_no_heads(tmp_path: Path, model: Path) -> None:
    refused(dspark("heads", "inspect", str(tmp_path / "none")), "none: no such folder")
    refused(dspark("heads", "inspect", str(model)), "dspark-heads-1 is read; dspark heads import")
