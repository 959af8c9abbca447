"""The command line: options, exit codes, one-line errors, and stdout that holds results only."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from dspark_compiler import cli
from dspark_compiler.commands.base import Command, Group
from dspark_compiler.errors import CheckFailedError, InputError
from tests.runtime import toy, toy_heads

GENERATE_KEYS = (
    *("prompt_tokens", "tokens", "text", "ttft_ms", "tpot_ms", "rounds"),
    *("accepted_length", "kv_slots", "peak_memory_bytes"),
)

# Sprawl needs a decision: an option is added here on purpose or not at all.
OPTIONS = {
    "dspark-compile": [
        *(
            "--arch",
            "--calibration",
            "--check",
            "--debug",
            "--dtype",
            "--dump-ir",
            "--emit",
            "--heads",
            "--kv-budget",
            "--kv-dtype",
            "--kv-policy",
        ),
        *("--kv-weights", "--max-batch", "--max-quality-loss", "--max-seq-len", "--output", "--prefill-widths"),
        *("--quantize", "--quantize-heads"),
        *("--target", "--tune-trials", "--verify-width", "--version"),
    ],
    "generate": [
        *(
            "--chat",
            "--debug",
            "--device",
            "--json",
            "--max-new-tokens",
            "--min-p",
            "--no-heads",
            "--no-verify",
            "--prompt",
        ),
        *("--prompt-ids", "--repetition-penalty", "--seed", "--stop", "--temperature", "--threads"),
        *("--top-k", "--top-p"),
    ],
    "bench": [
        *(
            "--against",
            "--debug",
            "--device",
            "--json",
            "--model",
            "--new-tokens",
            "--no-verify",
            "--plot",
            "--prompt-len",
        ),
        *("--repeats", "--threads"),
    ],
    "eval": [
        *(
            "--against",
            "--data",
            "--debug",
            "--device",
            "--json",
            "--kv-weights",
            "--length",
            "--limit",
            "--model",
            "--no-verify",
            "--plot",
        ),
        *("--sweep-budgets", "--sweep-policies", "--task", "--threads"),
    ],
    "inspect": ["--debug", "--graph", "--json", "--no-verify"],
    "tune": [
        *(
            "--arch",
            "--calibration",
            "--debug",
            "--dtype",
            "--heads",
            "--kv-budget",
            "--kv-dtype",
            "--kv-policy",
            "--kv-weights",
            "--max-batch",
            "--max-seq-len",
            "--prefill-widths",
            "--quantize",
            "--quantize-heads",
            "--target",
        ),
        *("--trials", "--verify-width"),
    ],
    "doctor": ["--debug", "--json"],
    "heads calibrate": [
        *("--data", "--debug", "--new-tokens", "--prompts", "--samples", "--seed", "--target", "--temperature"),
    ],
    "heads eval": [
        *("--data", "--debug", "--json", "--new-tokens", "--prompts", "--samples", "--seed", "--temperature"),
    ],
    "heads prompts": [
        *("--count", "--debug", "--device", "--exclude", "--new-tokens", "--output", "--seed"),
        "--temperature",
    ],
    "heads train": [
        *("--anchors", "--batch", "--block-size", "--checkpoint-every", "--confidence", "--data", "--debug"),
        *("--device", "--head-type", "--init", "--layers", "--loss-decay", "--lr", "--markov-rank", "--max-length"),
        *("--minutes", "--new-tokens", "--output", "--samples", "--seed", "--sequences", "--steps", "--taps"),
        *("--temperature", "--type"),
    ],
    "heads import": ["--debug", "--model", "--output"],
    "heads inspect": ["--debug", "--json"],
    "kvzap train": ["--data", "--debug", "--documents", "--hidden", "--length", "--output", "--seed", "--steps"],
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toy.write(tmp_path_factory.mktemp("cli") / "toy.dspark"))


def dspark(*args: str) -> Result:
    return CliRunner().invoke(cli.main, list(args))


def refused(result: Result, message: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def leaves(group: click.Group) -> dict[str, click.Command]:
    """Every command below a group, by the words that call it."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        inner = leaves(command) if isinstance(command, click.Group) else {"": command}
        found |= {f"{name} {rest}".rstrip(): leaf for rest, leaf in inner.items()}
    return found


def test_the_options_are_these_and_no_others() -> None:
    commands = {"dspark-compile": cli.compile_main} | leaves(cli.main)
    found = {
        name: sorted(
            max(parameter.opts, key=len) for parameter in command.params if isinstance(parameter, click.Option)
        )
        for name, command in commands.items()
    }
    assert found == OPTIONS


def test_every_command_is_one_of_ours_and_documented() -> None:
    for command in (cli.compile_main, *cli.main.commands.values(), *leaves(cli.main).values()):
        assert isinstance(command, Command | Group)
        assert command.help


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, dspark_compiler.cli as c; print(sorted({'numpy', 'rich', 'tokenizers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_generate_streams_text(artifact: str) -> None:
    result = dspark("generate", artifact, "--prompt", "hello", "--max-new-tokens", "6")
    expected = bytes(toy.Reference().greedy([toy.BOS, *b"hello"], 6)).decode()
    assert (result.exit_code, result.stdout, result.stderr) == (0, expected + "\n", "")


def test_generate_json_has_the_agreed_keys(artifact: str, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[1, 2, 3]")
    result = dspark("generate", artifact, "--prompt-ids", str(tmp_path / "ids.json"), "--max-new-tokens", "5", "--json")
    data = json.loads(result.stdout)
    assert tuple(data) == GENERATE_KEYS
    assert data["prompt_tokens"] == [1, 2, 3]
    assert data["tokens"] == toy.Reference().greedy([1, 2, 3], 5)
    assert data["text"] == bytes(data["tokens"]).decode()
    assert (data["rounds"], data["kv_slots"], data["accepted_length"]) == (4, 7, None)
    assert data["ttft_ms"] > 0
    assert data["tpot_ms"] > 0
    assert data["peak_memory_bytes"] > 10_000_000


def test_generate_chat_sampling_and_stop(artifact: str) -> None:
    args = ["generate", artifact, "--prompt", "Hi", "--chat", "--temperature", "1.2", "--top-p", "0.9", "--top-k", "50"]
    args += ["--min-p", "0.01", "--repetition-penalty", "1.1", "--seed", "4", "--max-new-tokens", "12", "--json"]
    first, again = json.loads(dspark(*args).stdout), json.loads(dspark(*args).stdout)
    assert first["prompt_tokens"] == [toy.BOS, toy.USER, *b"Hi", toy.ASSISTANT]
    assert first["tokens"] == again["tokens"]
    assert json.loads(dspark(*args, "--seed", "5").stdout)["tokens"] != first["tokens"]
    stop = first["text"][3]
    stopped = json.loads(dspark(*args, "--stop", "@@", "--stop", stop).stdout)
    assert stopped["text"] == first["text"][: first["text"].index(stop)]


def test_generate_without_a_tokenizer_prints_ids(tmp_path: Path) -> None:
    path = str(toy.write(tmp_path / "a.dspark", text=False))
    (tmp_path / "ids.json").write_text("[1, 2]")
    result = dspark("generate", path, "--prompt-ids", str(tmp_path / "ids.json"), "--max-new-tokens", "4")
    assert result.stdout == " ".join(map(str, toy.Reference().greedy([1, 2], 4))) + "\n"
    refused(dspark("generate", path, "--prompt", "x"), "has no tokenizer.json, so it takes no text; give token ids")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give either --prompt or --prompt-ids"),
        (["--prompt", "x", "--prompt-ids", "y"], "give either --prompt or --prompt-ids"),
        (["--prompt-ids", "y", "--chat"], "--chat needs --prompt"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "x" * 100], "the prompt has 101 tokens, the artifact holds 48"),
        (["--prompt", "x", "--temperature", "-1"], "temperature -1.0: must be"),
        (["--prompt", "x", "--temperature", "hot"], "'hot' is not a valid float"),
        (["--prompt", "x", "--threads", "0"], "--threads 0: must be at least 1"),
        (["--prompt", "x", "--device", "1"], "was compiled for the processor, which is one device, 0"),
        (["--prompt", "x", "--frobnicate"], "No such option"),
        (["--prompt-ids", "/none.json"], "--prompt-ids /none.json: No such file"),
    ],
)
def test_generate_refuses(artifact: str, args: list[str], message: str) -> None:
    refused(dspark("generate", artifact, *args), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "not valid JSON"),
        ('{"a": 1}', "must hold a list of token ids"),
        ("[1, 2.0]", "must hold a list of token ids"),
        ("[true]", "must hold a list of token ids"),
        ("[]", "the prompt is empty"),
        ("[1, 260]", "prompt token 1 is 260, outside the vocabulary of 260"),
    ],
)
def test_prompt_ids_that_are_none(artifact: str, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ids.json").write_text(text)
    refused(dspark("generate", artifact, "--prompt-ids", str(tmp_path / "ids.json")), message)


@pytest.mark.parametrize("command", ["generate", "inspect"])
def test_an_edited_artifact(tmp_path: Path, command: str) -> None:
    path = toy.write(tmp_path / "a.dspark")
    (path / "chat_template.jinja").write_text(toy.CHAT_TEMPLATE.replace("assistant", "ASSISTANT"))
    args = ["--prompt", "x"] if command == "generate" else []
    refused(dspark(command, str(path), *args), "chat_template.jinja: was changed")
    assert dspark(command, str(path), *args, "--no-verify").exit_code == 0


def test_inspect_json(artifact: str) -> None:
    data = json.loads(dspark("inspect", artifact, "--json").stdout)
    assert data["model"]["name"] == "toy"
    assert list(data["entry_points"]) == ["prefill_4", "prefill_8", "decode", "verify_3", "commit"]
    assert data["parameters"] == {"count": 2, "bytes": 2 * 4 * toy.V**2}
    assert data["memory"]["states"] == 8 * toy.BATCH * (toy.SLOTS + toy.VERIFY)
    assert data["memory"]["total"] == data["memory"]["weights"] + data["memory"]["states"]
    assert data["files"]["bytes"] == sum(data["files"]["folders"].values())
    assert data["report"]["stages"] == {"capture": 1.0}


def test_inspect_tables(artifact: str) -> None:
    result = dspark("inspect", artifact)
    assert result.exit_code == 0
    for text in (
        "ToyForCausalLM",
        "prefill_8",
        "48 slots a sequence",
        "weights 0.5 MB",
        "stages.capture",
        "fold, fuse",
    ):
        assert text in result.stdout


def test_inspect_shows_an_artifact_for_another_machine(tmp_path: Path) -> None:
    target = toy.TargetInfo("cpu", "other", "riscv64-linux")
    path = str(toy.write(tmp_path / "a.dspark", target=target))
    assert "riscv64" in dspark("inspect", path).stdout
    refused(dspark("generate", path, "--prompt", "x"), "was compiled for riscv64-linux")


def test_an_unknown_command_and_none() -> None:
    refused(dspark("frobnicate"), "No such command 'frobnicate' (see dspark --help)")
    assert "Commands:" in dspark().stderr


def failing(error: BaseException) -> Command:
    @click.command("fail", cls=Command)
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (InputError("a\n  b"), 2, "error: a b\n"),
        (CheckFailedError("tokens differ"), 1, "error: tokens differ\n"),
        (OSError(28, "No space left on device", "/x"), 2, "error: /x: No space left on device\n"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device\n"),
        (ModuleNotFoundError("", name="torch"), 2, "error: this command needs the package torch; pip install "),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_and_exit_codes(error: BaseException, code: int, stderr: str) -> None:
    result = CliRunner().invoke(failing(error))
    assert result.exit_code == code
    assert result.stderr.lstrip("\n").startswith(stderr)


def test_debug_shows_the_traceback_and_the_line() -> None:
    result = CliRunner().invoke(failing(InputError("what is wrong")), ["--debug"])
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: what is wrong\n")


def test_a_bug_is_called_one_in_one_line() -> None:
    result = CliRunner().invoke(failing(ZeroDivisionError("a bug")))
    assert result.exit_code == 2
    assert result.stderr == (
        "error: internal error, please report it with what --debug prints: ZeroDivisionError: a bug\n"
    )


def test_a_reader_that_leaves_early_is_no_error(artifact: str) -> None:
    command = f"set -o pipefail; {sys.executable} -m dspark_compiler inspect {artifact} --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr == ""


@pytest.fixture(scope="module")
def with_heads(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toy_heads.write(tmp_path_factory.mktemp("cli-heads") / "toy.dspark", drafter=True))


def test_generate_with_heads_and_without(with_heads: str) -> None:
    args = ["generate", with_heads, "--prompt", "hello", "--max-new-tokens", "9", "--json"]
    drafted, plain = json.loads(dspark(*args).stdout), json.loads(dspark(*args, "--no-heads").stdout)
    assert drafted["tokens"] == plain["tokens"]
    assert drafted["accepted_length"] == (len(drafted["tokens"]) - 1) / drafted["rounds"]
    assert plain["accepted_length"] is None


def test_inspect_shows_heads(with_heads: str, artifact: str, tmp_path: Path) -> None:
    shown = dspark("inspect", with_heads).stdout
    for text in ("toy-dspark", "2 tokens a round", "not calibrated", "1.00 to decode, 0.10 to draft, 1.20 to verify 3"):
        assert text in shown
    assert json.loads(dspark("inspect", with_heads, "--json").stdout)["heads"]["type"] == "dspark"
    unmeasured = dspark("inspect", str(toy_heads.write(tmp_path / "a.dspark", drafter=False, times=None))).stdout
    assert "not measured; the first load does" in unmeasured
    assert "confidence" not in unmeasured
    assert "tokens a round" not in dspark("inspect", artifact).stdout
