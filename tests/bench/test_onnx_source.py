"""ONNX Runtime as an opponent: on an export of the source model, or on the file that the source is."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dspark_compiler.bench.contestants.base import Setup
from dspark_compiler.bench.contestants.onnxruntime import OnnxRuntime
from dspark_compiler.bench.onnx_export import form_of
from dspark_compiler.errors import InputError
from tests import onnx_graphs
from tests.bench import tiny

_PROMPT, _NEW = [5, 6, 7, 8, 9], 8


def _tokens(model: str) -> tuple[list[int], OnnxRuntime]:
    contestant = OnnxRuntime(Setup("artifact", model, "float32", 1, len(_PROMPT), _NEW))
    return [token for made in contestant.generate(_PROMPT, _NEW) for token in made], contestant


@pytest.mark.xdist_group("tiny-export")
def test_the_file_itself_gives_eager_s_tokens() -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.source())
    options = {"max_new_tokens": _NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = model.generate(torch.tensor([_PROMPT]), **options)[0, len(_PROMPT) :].tolist()
    found, contestant = _tokens(str(tiny.exported()))
    assert found == wanted
    assert contestant.options["export"] == "the source's own file, past bound to present"
    assert contestant.options["prepacking"] == "on"


def test_how_other_exporters_files_are_driven(tmp_path: Path) -> None:
    form = form_of(onnx_graphs.build("written-out", tmp_path / "m.onnx"), "whoever")
    assert (form.ids, form.logits, len(form.past), len(form.present)) == ("input_ids", "logits", 4, 4)
    assert form.mask == "attention_mask"


def test_a_file_without_a_past_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no past keys and values in and out, .* export it with a past"):
        form_of(onnx_graphs.build("multi-head", tmp_path / "m.onnx"), "whoever")
