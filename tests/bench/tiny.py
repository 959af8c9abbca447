"""A tiny random Llama with a byte-level tokenizer, as a Hugging Face folder and compiled."""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dspark_compiler.artifact import Artifact
from dspark_compiler.config import CompileConfig
from dspark_compiler.driver import compile_model
from tests.runtime import toy

CONTEXT = 64


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """Gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="tiny-")


@functools.cache
def source() -> Path:
    """The model's folder. Weights are large enough that greedy text is not one token over and over."""
    config = LlamaConfig(
        vocab_size=toy.V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=toy.BOS,
        eos_token_id=toy.EOS,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    path = Path(_folder().name) / "tiny"
    model.save_pretrained(path)
    (path / "tokenizer.json").write_text(toy.tokenizer().to_str(), encoding="utf-8")
    return path


@functools.cache
def compiled() -> Artifact:
    """Its artifact, in float32."""
    output = Path(_folder().name) / "tiny.dspark"
    return compile_model(str(source()), CompileConfig(output=output, prefill_widths=(16,), verify_width=4, check=False))


@functools.cache
def exported() -> Path:
    """Its export as an ONNX file with a past; tests that read it are in the xdist group "tiny-export"."""
    folder = Path(_folder().name) / "export"
    folder.mkdir()
    command = [sys.executable, "-m", "dspark_compiler.bench.onnx_export", str(source()), str(folder), "float32"]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads((folder / "form.json").read_text())["past"].keys() >= {"past.0.key", "past.1.value"}
    return folder / "model.onnx"
