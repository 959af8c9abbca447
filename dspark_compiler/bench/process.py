"""Contestants' processes, seen from the one that measures."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from dspark_compiler import errors
from dspark_compiler.bench.contestants import Setup
from dspark_compiler.errors import DSparkError


@dataclass(frozen=True)
class Generation:
    """One answer: its tokens, and when each was known, in milliseconds after the prompt was given.

    ``steps`` that made them, the prompt's among them; tokens of one step share its time evenly.
    """

    tokens: list[int]
    times_ms: list[float]
    steps: int


class ContestantProcess:
    """One contestant, alive until closed; use as a context manager.

    Raises:
        DSparkError: the contestant cannot be had here or its model not be opened; the class is the contestant's own.
    """

    def __init__(self, name: str, setup: Setup) -> None:
        self.name = name
        self._resources = ExitStack()
        log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115, _resources closes it
        self._log = self._resources.enter_context(log)
        environment = os.environ | {"OMP_NUM_THREADS": str(setup.threads), "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dspark_compiler.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        try:
            self.options: Mapping[str, str] = self._ask(contestant=name, **asdict(setup))["options"]
        except BaseException:
            self.close()
            raise

    def generate(self, prompt: list[int], new_tokens: int, *, warm_up: bool = False) -> Generation:
        """Continues a prompt greedily; memory used until the end of a ``warm_up`` does not count as peak."""
        return Generation(**self._ask(do="generate", prompt=prompt, new_tokens=new_tokens, settled=warm_up))

    def peak_memory_bytes(self) -> int:
        """The most memory that was resident since the warm-up."""
        return int(self._ask(do="memory")["peak_memory_bytes"])

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise DSparkError(f"{self.name}: its process ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._error(answer["kind"], answer["error"])
        return answer

    def _error(self, kind: str, message: str) -> DSparkError:
        found = getattr(errors, kind, None)
        if isinstance(found, type) and issubclass(found, DSparkError):
            return found(message)
        return DSparkError(f"{self.name}: {message}")

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return f"{lines[-1]:.300} (exit code {code})" if lines else f"exit code {code}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        with self._resources, contextlib.suppress(BrokenPipeError), self._process:
            pass  # waits, and closes the pipes
