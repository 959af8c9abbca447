"""Whether an artifact computes the same with one thread and with several, which a process chooses once."""

import subprocess
import sys
from pathlib import Path

_RUN = """
import hashlib, sys
from dspark_compiler import SamplingParams, load
for path in sys.argv[2:]:
    engine = load(path, threads=int(sys.argv[1]))
    prompts = [[5, 6, 7] * 9, [3, 1, 4]][: engine.executor.batch]
    done = engine.complete(prompts, SamplingParams(max_new_tokens=60, ignore_eos=True))
    logits = engine.executor.prefill(0, prompts[0], 0, 0)
    print(*(completion.tokens for completion in done), hashlib.sha256(logits.tobytes()).hexdigest())
"""


def check_threads(*artifacts: Path) -> None:
    """Tokens and logits of each artifact are the same bits with one thread and with two."""
    one, two = (_printed(threads, artifacts) for threads in (1, 2))
    assert len(one.splitlines()) == len(artifacts)
    assert one == two


def _printed(threads: int, artifacts: tuple[Path, ...]) -> str:
    command = [sys.executable, "-c", _RUN, str(threads), *map(str, artifacts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
