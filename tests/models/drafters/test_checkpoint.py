"""The folder of decode heads: what is written comes back, and nothing else is taken for one."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dspark_compiler.errors import InputError
from dspark_compiler.models import ModelInfo
from dspark_compiler.models.drafters.checkpoint import read_heads, write_calibration, write_heads
from dspark_compiler.models.drafters.heads import Calibration
from dspark_compiler.models.drafters.validate import check_fits
from tests.models.drafters import tiny

CALIBRATION = Calibration((1.0, 2.0, 0.5, 1.5), (0.1,) * tiny.G, (0.05,) * tiny.G, (0.7,) * tiny.G)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_heads(tmp_path / "heads", tiny.heads())
    return tmp_path / "heads"


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_what_is_written_comes_back(tmp_path: Path, name: str) -> None:
    written = tiny.heads(name)
    write_heads(tmp_path / "heads", written)
    assert {file.name for file in tmp_path.iterdir()} == {"heads"}
    assert {file.name for file in (tmp_path / "heads").iterdir()} == {"config.json", "model.safetensors"}
    found = read_heads(tmp_path / "heads")
    assert found.drafter.config == written.drafter.config
    assert (found.target, found.training, found.calibration) == (tiny.TARGET, written.training, None)
    got, want = found.drafter.state_dict(), written.drafter.state_dict()
    assert got.keys() == want.keys()
    for key, tensor in got.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, want[key].bfloat16().float())


def test_config_is_sorted_and_weights_are_bfloat16(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    assert list(data) == sorted(data)
    assert data["format"] == "dspark-heads-1"
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}


def test_the_scalar_of_a_gemma4_layer_is_a_weight(tmp_path: Path) -> None:
    write_heads(tmp_path / "heads", tiny.heads("gemma4"))
    names = load_file(tmp_path / "heads" / "model.safetensors").keys()
    assert "layers.1.layer_scalar" in names
    assert not [name for name in names if "inv_freq" in name or "v_proj" in name or "v_norm" in name]


def test_a_calibration_stays_until_weights_are_written_anew(folder: Path) -> None:
    write_calibration(folder, CALIBRATION)
    assert read_heads(folder).calibration == CALIBRATION
    write_heads(folder, read_heads(folder))
    assert read_heads(folder).calibration == CALIBRATION
    write_heads(folder, tiny.heads())
    assert read_heads(folder).calibration is None


def test_heads_take_the_place_of_heads_and_of_nothing_else(folder: Path) -> None:
    write_heads(folder, tiny.heads("medusa"))
    assert read_heads(folder).drafter.config.drafter_type == "medusa"
    other = folder.parent / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="other: is a folder but holds no decode heads"):
        write_heads(other, tiny.heads())
    assert (other / "config.json").read_text() == '{"model_type": "llama"}'
    with pytest.raises(InputError, match=r"config\.json: is a file"):
        write_heads(other / "config.json", tiny.heads())


def test_a_write_that_fails_leaves_the_heads_before_it(folder: Path) -> None:
    broken = dataclasses.replace(tiny.heads("medusa"), training={"oops": {1, 2}})
    with pytest.raises(TypeError):
        write_heads(folder, broken)
    assert read_heads(folder).drafter.config.drafter_type == "dspark"
    assert [file.name for file in folder.parent.iterdir()] == ["heads"]


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def edit_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def edit_calibration(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        write_calibration(folder, dataclasses.replace(CALIBRATION, **changes))

    return edit


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json, so these are no decode heads"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: holds no JSON object"),
        (edit_config(format="dspark-heads-9"), "format 'dspark-heads-9' where dspark-heads-1 is read; upgrade"),
        (lambda f: (f / "config.json").write_text('{"architectures": ["Qwen3DSparkModel"]}'), "dspark heads import"),
        (edit_config(drafter_type="hydra"), "drafter_type: 'hydra' is not one of dspark, medusa, eagle3"),
        (edit_config(backbone="mamba"), "backbone: 'mamba' is not one of qwen3, llama, gemma4"),
        (edit_config(markov_head_type="lstm"), "markov_head_type: 'lstm' is not one of vanilla, gated, rnn"),
        (edit_config(surprise=1), "surprise: unknown field"),
        (edit_config(block_size="7"), "block_size: expected an integer, got '7'"),
        (edit_config(block_size=0), "block_size: 0 must be 1 or more"),
        (edit_config(context_window=0), "context_window: 0 must be 1 or more"),
        (edit_config(target_layer_ids=[]), "target_layer_ids: empty"),
        (edit_config(target_layer_ids=[3, 1]), r"target_layer_ids: \[3, 1\] must ascend"),
        (edit_config(target_layer_ids=[1, 1]), r"target_layer_ids: \[1, 1\] must ascend"),
        (edit_config(target_layer_ids=[1, 4]), "target_layer_ids: 4 is the target's last layer"),
        (edit_config(target_layer_ids=[1, 5]), "target_layer_ids: 5 is not a layer of a target with 5"),
        (edit_config(target_layer_ids=[-2]), "target_layer_ids: -2 is not a layer"),
        (edit_config(mask_token_id=tiny.V), "mask_token_id: 48 lies outside the vocabulary of 48"),
        (edit_config(num_hidden_layers=0), "num_hidden_layers: 0 must be 1 or more"),
        (edit_config(num_key_value_heads=3), "num_key_value_heads: 3 does not divide num_attention_heads 4"),
        (edit_config(head_dim=7), "head_dim: 7 is odd"),
        (edit_config(rms_norm_eps=-1.0), "rms_norm_eps: -1.0 must not be negative"),
        (edit_config(hidden_act="sillu"), "hidden_act: 'sillu' is unknown"),
        (edit_config(rope={"rope_theta": 1e4, "rope_type": "spiral"}), "rope.rope_type: 'spiral' is unknown"),
        (edit_config(rope={}), "rope.rope_theta: None is not a positive number"),
        (edit_config(markov_rank=-1), "markov_rank: -1 must be 0 or more"),
        (edit_config(markov_rank=0), "confidence_head_with_markov: needs a confidence head and a markov_rank"),
        (edit_config(enable_confidence_head=False), "confidence_head_with_markov: needs a confidence head"),
        (edit_config(attention_k_eq_v=True), "attention_k_eq_v: only a gemma4 backbone"),
        (edit_config(drafter_type="eagle3"), "num_hidden_layers: 2, but an eagle3 drafter has 1"),
        (edit_config(drafter_type="medusa"), "medusa drafters have no such heads"),
        (edit_config(target=None), "target: expected an object"),
        (edit_config(target=dataclasses.asdict(tiny.TARGET) | {"num_layers": 6}), "sizes are not those of the drafter"),
        (edit_config(training=3), "training: expected an object"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (cut, "model.safetensors: cut short or damaged"),
        (edit_tensors(lambda t: t.pop("fc.weight")), "tensor fc.weight is missing;"),
        (edit_tensors(lambda t: [t.pop("fc.weight"), t.pop("norm.weight")]), r"fc.weight is missing \(and 1 more\)"),
        (edit_tensors(lambda t: t.update(extra=torch.ones(1))), "tensor extra has no place"),
        (edit_tensors(lambda t: t.update({"norm.weight": torch.ones(3)})), r"norm.weight has shape \(3,\), .* \(16,\)"),
        (
            edit_tensors(lambda t: t.update({"markov_head.markov_w1.weight": torch.ones(48, 6, dtype=torch.int8)})),
            "tensor markov_head.markov_w1.weight is int8; only bfloat16",
        ),
        (edit_tensors(lambda t: t["norm.weight"].fill_(torch.inf)), "tensor norm.weight holds numbers that are not"),
        (lambda f: (f / "calibration.json").write_text("{}"), "calibration.json: temperatures: missing"),
        (edit_calibration(temperatures=(1.0, 0.0, 1.0, 1.0)), "temperatures: each must be a positive number"),
        (edit_calibration(shifts=(0.1,)), "shifts: 1 numbers, 4 drafted tokens"),
        (edit_calibration(shifts=(0.1, float("inf"), 0.0, 0.0)), "shifts: each must be a number"),
        (edit_calibration(auc=(0.5,)), "auc: 1 numbers, 4 drafted tokens"),
    ],
)
def test_damage_is_one_clear_line(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        read_heads(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such folder; give one that dspark heads"):
        read_heads(tmp_path / "none")


def test_calibration_without_a_confidence_head(tmp_path: Path) -> None:
    write_heads(tmp_path / "heads", tiny.heads("dflash"))
    write_calibration(tmp_path / "heads", CALIBRATION)
    with pytest.raises(InputError, match="calibrates a drafter that has no confidence head"):
        read_heads(tmp_path / "heads")


def model(**changes: Any) -> ModelInfo:
    info = ModelInfo("other", "LlamaForCausalLM", "llama", tiny.V, tiny.D, 5, 64, (2,), 1)
    return dataclasses.replace(info, **changes)


@pytest.mark.parametrize("sha", ["ab" * 32, None])
def test_heads_fit_their_model(sha: str | None) -> None:
    check_fits(tiny.heads(), "heads", model(), sha)


@pytest.mark.parametrize(
    ("changes", "sha", "message"),
    [
        ({"hidden_size": 32}, None, r"made for tiny \(hidden size: 16\), other has 32; train heads for this model"),
        ({"vocab_size": 49}, None, r"\(vocabulary: 48\), other has 49"),
        ({"num_layers": 6}, None, r"\(layers: 5\), other has 6"),
        ({}, "cd" * 32, r"\(tokenizer: abababababab\), other has cdcdcdcdcdcd"),
    ],
)
def test_heads_of_another_model(changes: dict[str, Any], sha: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_fits(tiny.heads(), "heads", model(**changes), sha)
