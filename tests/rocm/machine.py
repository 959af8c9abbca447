"""A machine with a fake HIP runtime, on which artifacts run in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.rocm.tools import fake_hip

NEW_TOKENS = 8
# Runs every entry point twice, as it comes and as a graph. What the fake leaves in results means nothing, so that it is
# said here what is committed.
ALL_ENTRIES = """
import sys
import numpy as np
from pathlib import Path
from dspark_compiler.artifact import Artifact
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.rounds import Anchors
from dspark_compiler.runtime.sampling import SamplingInputs
executor, drawn = Executor(Artifact.open(Path(sys.argv[1]))), SamplingInputs.of(2, {})
commit, executor.commit = executor.commit, lambda lengths, accepted: None
token, first, none = np.ones(2, np.int64), np.array([1, 0]), np.zeros((2, executor.block_size + 1))
for _ in range(2):
    executor.prefill(0, [5] * 180, 0, 0)  # more than there are slots
    lengths = np.array([180, 0])
    for _ in range(12):
        executor.step(token, lengths, lengths, first, np.zeros((2, 1)), drawn).following
        lengths = lengths + first
    for width in executor.round_widths:
        anchors = Anchors(token, lengths, lengths)
        drafts = executor.draft(anchors, none[:, 1:], drawn)
        executor.speculate(anchors, drafts, np.array([width - 1, -1]), none, drawn).following
        commit(lengths, first)
        lengths = lengths + first
print(*sorted(executor.calls))
"""


class Machine:
    """A machine with a fake HIP runtime, and what that noted in the last process."""

    def __init__(self, folder: Path) -> None:
        self.hip, self._log = fake_hip(folder).parent, folder / "log"
        (folder / "ids.json").write_text(json.dumps([3, 1, 4, 1, 5, 9]))
        self._prompt = str(folder / "ids.json")

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Python in a process of its own."""
        self._log.unlink(missing_ok=True)
        own = {"LD_LIBRARY_PATH": str(self.hip), "FAKE_HIP_LOG": str(self._log)}
        return subprocess.run(
            [sys.executable, *command], env=os.environ | own | variables, capture_output=True, text=True, check=False
        )

    def generate(self, artifact: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """``dspark generate`` without drafts; whatever comes of it, nothing that HIP would object to."""
        length = str(NEW_TOKENS)
        command = ["generate", str(artifact), "--prompt-ids", self._prompt, "--max-new-tokens", length, "--json"]
        done = self.run("-m", "dspark_compiler", *command, "--no-heads", *options, **variables)
        assert not [line for line in self.log() if line.startswith("WRONG")]
        return done

    def refuses(self, artifact: Path, *options: str, **variables: str) -> str:
        """The one line that ``dspark generate`` ends with."""
        done = self.generate(artifact, *options, **variables)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        return line

    def log(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []
