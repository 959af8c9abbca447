"""dspark bench and dspark eval on a tiny compiled model, and what they refuse."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dspark_compiler.artifact import Artifact
from dspark_compiler.cli import main
from tests.bench.tiny import CONTEXT
from tests.runtime import toy_heads

# torch.compile compiles as quickly as it can: in its own process, whose likes take longer to import torch than they
# save, without vectors, and with one run of the C++ compiler for each graph instead of one for each kernel, which are
# too few for precompiled headers.
CHEAP_INDUCTOR = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCHINDUCTOR_VEC_ISA_OK": "0",
    "TORCHINDUCTOR_CPP_WRAPPER": "1",
    "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
}


def dspark(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def refused(message: str, *args: object) -> None:
    result = dspark(*args)
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line


def test_bench_against_everybody(tiny_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CHEAP_INDUCTOR.items():
        monkeypatch.setenv(name, value)
    file, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    opponents = [word for name in ("eager", "torch-compile", "onnxruntime") for word in ("--against", name)]
    lengths = ("--prompt-len", 9, "--new-tokens", 12, "--repeats", 2)
    result = dspark("bench", tiny_artifact.path, *opponents, *lengths, "--json", file, "--plot", picture)
    assert result.exit_code == 0, result.output
    data = json.loads(file.read_text())
    assert [run["name"] for run in data["runs"]] == ["compiled", "eager", "torch-compile", "onnxruntime"]
    assert data["tokens_identical"] is True
    assert set(data["speedup"]) == {"eager", "torch-compile", "onnxruntime"}
    assert (data["prompt_len"], data["new_tokens"], data["dtype"], data["target"]) == (9, 12, "float32", "cpu")
    compiled, eager = data["runs"][:2]
    assert compiled["peak_memory_bytes"] < eager["peak_memory_bytes"]  # no torch in there
    assert picture.stat().st_size > 1000


def test_bench_alone_needs_no_source(toy_artifact: Path) -> None:
    result = dspark("bench", toy_artifact, "--prompt-len", 4, "--new-tokens", 5, "--repeats", 1)
    assert result.exit_code == 0, result.output
    assert "compiled" in result.stdout


def test_bench_with_heads_and_without_needs_no_source(tmp_path: Path) -> None:
    path, file = toy_heads.write(tmp_path / "toy.dspark", drafter=False), tmp_path / "bench.json"
    lengths = ("--prompt-len", 4, "--new-tokens", 9, "--repeats", 2)
    result = dspark("bench", path, "--against", "no-heads", *lengths, "--json", file)
    assert result.exit_code == 0, result.output
    data = json.loads(file.read_text())
    drafting, plain = data["runs"]
    assert (drafting["name"], plain["name"], plain["accepted_length"]) == ("compiled", "no-heads", None)
    assert drafting["accepted_length"] >= 1
    assert drafting["options"]["heads"] == "toy-ngram (ngram, 2 drafts)"
    assert data["tokens_identical"] is True
    assert set(data["speedup"]) == {"no-heads"}


def test_bench_fails_when_tokens_differ(tiny_artifact: Artifact, tiny_source: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_source, other)
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] + 0.1 * torch.randn_like(weights["lm_head.weight"])
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    arguments = ("--prompt-len", 9, "--new-tokens", 30, "--repeats", 1, "--json", tmp_path / "bench.json")
    result = dspark("bench", tiny_artifact.path, "--against", "eager", "--model", other, *arguments)
    assert result.exit_code == 1
    assert "no speed-up to report" in result.stderr
    assert "top-2 margin" in result.stderr
    assert not (tmp_path / "bench.json").exists()


def test_bench_refuses(toy_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("no such artifact", "bench", tmp_path / "none")
    contestants = "no-heads, eager, torch-compile, onnxruntime"
    refused(f"--against onnx: not one of {contestants}", "bench", toy_artifact, "--against", "onnx")
    refused("has no heads; compile it with --heads", "bench", toy_artifact, "--against", "no-heads", *SHORT)
    refused(
        "nowhere: no such file or folder", "bench", toy_artifact, "--against", "eager", "--model", "nowhere", *SHORT
    )
    refused("give it with --model", "bench", toy_artifact, "--against", "eager", *SHORT)
    refused("256 tokens together, the artifact holds 48", "bench", toy_artifact)
    refused("--repeats 0: must be at least 1", "bench", toy_artifact, "--repeats", 0)
    refused("--new-tokens 1: must be at least 2", "bench", toy_artifact, "--new-tokens", 1)
    refused("--threads 0: must be at least 1", "bench", toy_artifact, "--threads", 0)
    refused("make it first", "bench", toy_artifact, *SHORT, "--json", tmp_path / "none" / "a.json")
    refused("draws .png, .svg or .pdf", "bench", toy_artifact, *SHORT, "--plot", tmp_path / "a.txt")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    refused("--plot needs the package matplotlib", "bench", toy_artifact, *SHORT, "--plot", tmp_path / "a.png")


SHORT = ("--prompt-len", 3, "--new-tokens", 3)


def results(file: Path) -> dict:
    """Of the only task."""
    (found,) = json.loads(file.read_text())["results"].values()
    return found


def test_perplexity_is_eagers(tiny_artifact: Artifact, tmp_path: Path) -> None:
    data, file = tmp_path / "text.jsonl", tmp_path / "ppl.json"
    texts = ["x" * (CONTEXT + 20), "hello there", ""]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "\n")
    result = dspark("eval", tiny_artifact.path, "--task", "ppl", "--data", data, "--json", file)
    assert result.exit_code == 0, result.output
    found = results(file)
    # One token a byte and one at the beginning of a text: a full window, its rest, and the second text.
    assert (found["windows"], found["tokens"]) == (3, CONTEXT - 1 + 21 - 1 + 11)
    assert found["ratio"] == pytest.approx(1, abs=1e-4)
    assert found["perplexity"] > 1.1
    limited = dspark("eval", tiny_artifact.path, "--task", "ppl", "--limit", 1)
    assert limited.exit_code == 0, limited.output


def test_perplexity_without_the_source(toy_artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "ppl.json"
    result = dspark("eval", toy_artifact, "--task", "ppl", "--limit", 2, "--json", file)
    assert result.exit_code == 0, result.output
    found = results(file)
    assert found["windows"] == 2
    assert "eager_perplexity" not in found


def test_agreement_is_complete(tiny_artifact: Artifact, tmp_path: Path) -> None:
    data, file = tmp_path / "prompts.txt", tmp_path / "agreement.json"
    data.write_text("one\n\ntwo and more\nthree\n")
    result = dspark("eval", tiny_artifact.path, "--task", "agreement", "--data", data, "--limit", 2, "--json", file)
    assert result.exit_code == 0, result.output
    found = results(file)
    assert (found["prompts"], found["agreement"], found["tokens"]) == (2, 1, 2 * ((CONTEXT + 1) // 2))


def test_eval_refuses(toy_artifact: Path, tmp_path: Path) -> None:
    refused("no such artifact", "eval", tmp_path / "none", "--task", "ppl")
    refused(
        "--task joy: not one of ppl, agreement, needle, lambada, lambada-stream", "eval", toy_artifact, "--task", "joy"
    )
    refused("--limit 0: must be at least 1", "eval", toy_artifact, "--task", "ppl", "--limit", 0)
    refused("give it with --model", "eval", toy_artifact, "--task", "agreement")
    refused("nowhere: no such file or folder", "eval", toy_artifact, "--task", "agreement", "--model", "nowhere")
    data = tmp_path / "data.jsonl"
    refused("data.jsonl: No such file", "eval", toy_artifact, "--task", "ppl", "--data", data)
    for content, message in (
        (b"", "holds no text"),
        (b'{"text": "  "}\n', "holds no text"),
        (b'{"text": "a"}\n\n{"text": \n', "line 3 is not valid JSON"),
        (b'{"text": "a"}\n{"words": "b"}\n', 'line 2 has no "text"'),
        (b'["a"]\n', 'line 1 has no "text"'),
        (b"\xff\xfe", "not UTF-8 text (byte 0)"),
    ):
        data.write_bytes(content)
        refused(message, "eval", toy_artifact, "--task", "ppl", "--data", data)
