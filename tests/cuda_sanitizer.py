"""Runs tiny models on a GPU under compute-sanitizer: memory errors, races in shared memory, misused barriers.

    python -m tests.cuda_sanitizer FOLDER [--tool racecheck] [--jobs 8]

Compiles each model once into FOLDER, then generates with it under each tool; exits 1 if a tool found anything.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dspark_compiler.config import NGRAM

TOOLS = ("memcheck", "racecheck", "synccheck")
_PRUNED = {"kv_budget": 48, "max_seq_len": 96, "prefill_widths": (8,)}
_NEW_TOKENS = 12
# Products read rows of whole 16 bytes.
_DRAFTER = {"markov_rank": 32, "head_dim": 16, "intermediate_size": 64}


@dataclass(frozen=True)
class Case:
    """A tiny model, the kind of sequential head its drafter has if it has one, and options of its compile."""

    family: str
    options: Mapping[str, Any]
    drafter: str | None = None


CASES = {
    "qwen3": Case("qwen3", {}),
    "gemma2": Case("gemma2", {}),
    "gpt2": Case("gpt2", {}),
    "mixtral": Case("mixtral", {}),
    "qwen3-drafter": Case("qwen3", {}, "vanilla"),
    "llama-int8-drafter": Case("llama", {"quantize_heads": "int8"}, "rnn"),
    "qwen3-int4": Case("qwen3", {"quantize": "int4-g128", "dtype": "float16"}),
    "qwen3-fp8-int8-cache": Case("qwen3", {"quantize": "fp8", "kv_dtype": "int8"}),
    "llama-pruned": Case("llama", _PRUNED | {"heads": NGRAM, "kv_policy": "h2o", "kv_dtype": "float8_e4m3"}),
    "llama-pruned-int8": Case("llama", _PRUNED | {"kv_policy": "keydiff", "kv_dtype": "int8", "quantize": "int8"}),
}


def build(folder: Path, name: str) -> None:
    """Compiles a case to ``folder/name.dspark`` unless that is there."""
    from dspark_compiler.models.drafters.checkpoint import write_heads
    from tests.gpu import compiled
    from tests.passes.test_attach_decode_heads import make_heads
    from tests.tiny_models import TINY

    output, case = folder / f"{name}.dspark", CASES[name]
    if output.exists():
        return
    work, options = folder / name, dict(case.options)
    work.mkdir(parents=True, exist_ok=True)
    if case.drafter is not None:
        write_heads(work / "heads", make_heads(TINY[case.family](), case.drafter, **_DRAFTER))
        options["heads"] = work / "heads"
    compiled(case.family, work, **({"prefill_widths": (8, 40)} | options | {"output": output}))


def generate(artifact: Path) -> None:
    """Two sequences at once, greedy and sampled, with drafts wherever there are any."""
    from dspark_compiler import SamplingParams
    from dspark_compiler.artifact import Artifact
    from dspark_compiler.runtime.engine import Engine

    engine = Engine(Artifact.open(artifact), paced=False)
    prompts = [[3 + 7 * i % 90 for i in range(length)] for length in (45, 6)]
    greedy = SamplingParams(_NEW_TOKENS, ignore_eos=True)
    sampled = replace(greedy, temperature=1.0, seed=1)
    for params in (greedy, sampled, replace(sampled, top_k=20, top_p=0.9)):
        engine.complete(prompts, params)


def examine(artifact: Path, tool: str) -> tuple[bool, str]:
    """Whether a tool finds nothing, and what it said."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "10"]
    command += [sys.executable, "-m", "tests.cuda_sanitizer", str(artifact), "--generate"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Runs tiny models under compute-sanitizer.")
    parser.add_argument("folder", type=Path, help="where compiled models are kept")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="default: all")
    parser.add_argument("--case", action="append", choices=tuple(CASES), help="default: all")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--generate", action="store_true", help=argparse.SUPPRESS)  # the process under the tool
    given = parser.parse_args()
    if given.generate:
        generate(given.folder)
        return 0
    names = given.case or list(CASES)
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        list(pool.map(build, [given.folder] * len(names), names))
    failed = 0
    with ThreadPoolExecutor(given.jobs) as threads:
        runs = {
            threads.submit(examine, given.folder / f"{name}.dspark", tool): (tool, name)
            for tool in given.tool or TOOLS
            for name in names
        }
        for run in as_completed(runs):
            (tool, name), (clean, said) = runs[run], run.result()
            failed += not clean
            print(f"{tool:10} {name:22} {'nothing found' if clean else 'FAILED'}", flush=True)
            if not clean:
                print(said, flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
