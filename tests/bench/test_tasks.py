"""The tasks of dspark eval that need long documents: last words, needles, and agreement with another artifact."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dspark_compiler.artifact import Artifact
from dspark_compiler.bench.tasks import lambada
from dspark_compiler.bench.tasks.base import Context
from dspark_compiler.bench.tasks.needle import evaluate as find_needles
from dspark_compiler.cli import main
from dspark_compiler.runtime.tokenizer import Tokenizer
from tests.bench.tiny import CONTEXT
from tests.compare.oracle import Chain, Reader
from tests.runtime import toy

TOKENIZER = Tokenizer(toy.tokenizer().to_str(), "toy")


def dspark(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def results(result: Result, file: Path, task: str) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(file.read_text())["results"][task]


def refused(message: str, *args: object) -> None:
    result = dspark(*args)
    assert result.exit_code == 2, result.output
    assert message in result.stderr.strip().splitlines()[-1]


def with_executor(monkeypatch: pytest.MonkeyPatch, executor: object) -> None:
    monkeypatch.setattr(Context, "executor", executor)


def test_a_word_counts_if_all_its_tokens_are_greedy(monkeypatch: pytest.MonkeyPatch, toy_artifact: Path) -> None:
    data = toy_artifact.parent / "words.txt"
    data.write_text("x yz\nx yq\n  a\tx yz  \nz xz\n")
    with_executor(monkeypatch, Chain("x yz"))
    whole = Context(Artifact.open(toy_artifact), (data,))
    assert lambada.evaluate(whole) == {"passages": 4, "accuracy": 0.5}
    # 5 + 2 + 4 + 2 + 6 + 2 + 4 tokens
    assert lambada.evaluate_stream(whole) == {"passages": 4, "streams": 1, "longest_stream": 25, "accuracy": 0.5}
    short = lambada.evaluate_stream(Context(Artifact.open(toy_artifact), (data,), length=12, limit=3))
    assert (short["passages"], short["streams"], short["longest_stream"]) == (3, 2, 11)
    assert short["accuracy"] == pytest.approx(2 / 3)


def test_a_passage_that_is_too_long_loses_its_beginning(monkeypatch: pytest.MonkeyPatch, toy_artifact: Path) -> None:
    data = toy_artifact.parent / "long.jsonl"
    data.write_text(json.dumps({"text": "abc " * 100 + "x yz"}))
    executor = Chain("x yz")
    with_executor(monkeypatch, executor)
    assert lambada.evaluate(Context(Artifact.open(toy_artifact), (data,)))["accuracy"] == 1
    assert len(executor.seen) == toy.SLOTS
    assert executor.seen[0] == toy.BOS


def test_lambada_of_a_compiled_model(tiny_artifact: Artifact, tmp_path: Path) -> None:
    data, file = tmp_path / "words.jsonl", tmp_path / "result.json"
    data.write_text("".join(json.dumps({"text": f"the number {i} is it"}) + "\n" for i in range(6)))
    run = dspark(
        "eval",
        tiny_artifact.path,
        "--task",
        "lambada-stream",
        "--data",
        data,
        "--limit",
        "lambada-stream=5",
        "--json",
        file,
    )
    found = results(run, file, "lambada-stream")
    assert (found["passages"], found["streams"]) == (5, 2)
    assert 0 <= found["accuracy"] <= 1


def test_needles_by_kind_and_depth(monkeypatch: pytest.MonkeyPatch, toy_artifact: Path) -> None:
    with_executor(monkeypatch, Reader(1250))
    monkeypatch.setattr(Context, "span", 3000)
    found = find_needles(Context(Artifact.open(toy_artifact)))
    assert (found["documents"], found["questions"]) == (15, 5 + 5 + 25)
    assert found["accuracy_at_0.1"] == found["accuracy_at_0.3"] == 0
    assert found["accuracy_at_0.9"] == 1
    assert 0.2 < found["accuracy_single"] < 1
    with_executor(monkeypatch, Reader())
    assert find_needles(Context(Artifact.open(toy_artifact), limit=4))["accuracy"] == 1


def test_agreement_with_another_artifact(tiny_artifact: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "agreement.json"
    arguments = ("--task", "agreement", "--limit", 2, "--json", file)
    found = results(dspark("eval", tiny_artifact.path, "--against", tiny_artifact.path, *arguments), file, "agreement")
    assert (found["agreement"], found["near_agreement"]) == (1, 1)
    assert (found["prompts"], found["tokens"], found["prompt_tokens"]) == (2, CONTEXT, 2 * (CONTEXT // 2 + 1))
    assert found["against"] == str(tiny_artifact.path)


def test_agreement_reads_texts_in_pieces(tiny_artifact: Artifact, tmp_path: Path) -> None:
    data, file = tmp_path / "text.txt", tmp_path / "agreement.json"
    data.write_text("short")
    longer = tmp_path / "longer.txt"
    longer.write_text("x" * (2 * 33 + 10))  # two pieces of 33 and a rest too short to count
    arguments = ("--task", "agreement", "--data", data, "--data", f"agreement={longer}", "--json", file)
    found = results(dspark("eval", tiny_artifact.path, "--against", tiny_artifact.path, *arguments), file, "agreement")
    assert (found["prompts"], found["prompt_tokens"]) == (3, 6 + 2 * 33)


def test_agreement_refuses_another_model(tiny_artifact: Artifact, toy_artifact: Path, tmp_path: Path) -> None:
    task = ("--task", "agreement")
    message = "another model, its architecture is ToyForCausalLM and that of"
    refused(message, "eval", tiny_artifact.path, *task, "--against", toy_artifact)
    refused("no such artifact", "eval", tiny_artifact.path, *task, "--against", tmp_path / "none")
    other = tmp_path / "other.dspark"
    shutil.copytree(tiny_artifact.path, other)
    tokenizer = other / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes().replace(b'"<', b'">', 1))
    refused("its tokenizer is not that of", "eval", tiny_artifact.path, *task, "--against", other, "--no-verify")


def test_what_eval_refuses(toy_artifact: Path, tiny_artifact: Artifact, tmp_path: Path) -> None:
    refused("--task: not given; one or more of ppl, agreement, needle, lambada, lambada-stream", "eval", toy_artifact)
    refused("--task ppl: given twice", "eval", toy_artifact, "--task", "ppl", "--task", "ppl")
    refused("--against x: is for --task agreement", "eval", toy_artifact, "--task", "ppl", "--against", "x")
    refused("--data needle=x: is for --task needle", "eval", toy_artifact, "--task", "ppl", "--data", "needle=x")
    refused("--length 1: must be at least 2", "eval", toy_artifact, "--task", "ppl", "--length", 1)
    refused("the artifact holds 48 tokens", "eval", toy_artifact, "--task", "ppl", "--length", 49)
    refused("give --data FILE.jsonl", "eval", toy_artifact, "--task", "lambada")
    refused("48 tokens are too few for 1 needles", "eval", toy_artifact, "--task", "needle")
    data = tmp_path / "data.txt"
    data.write_text("two words\nword\n")
    refused("passage 2 is a single word", "eval", toy_artifact, "--task", "lambada", "--data", data)
    refused("--sweep-policies: is for a sweep", "eval", toy_artifact, "--task", "ppl", "--sweep-policies", "window")
    refused("--plot: is for a sweep", "eval", toy_artifact, "--task", "ppl", "--plot", tmp_path / "a.png")
    bare = toy.write(tmp_path / "bare.dspark", text=False)
    refused("has no tokenizer.json, so it cannot read text", "eval", bare, "--task", "needle")


def test_tasks_need_no_torch(toy_artifact: Path) -> None:
    program = (
        "import sys, dspark_compiler.cli as cli\n"
        "sys.modules['torch'] = sys.modules['transformers'] = sys.modules['tvm'] = None\n"
        f"cli.main(['eval', {str(toy_artifact)!r}, '--task', 'ppl', '--task', 'agreement', '--limit', '1',"
        f" '--against', {str(toy_artifact)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "near agreement" in done.stdout
