"""A contestant's process: loads once, then answers requests, one JSON object a line.

Requests on stdin: a Setup with the contestant's name first; then ``{"do": "generate", "prompt": […], "new_tokens": N}``
or ``{"do": "memory"}``, each with ``"settled": true`` if memory used until its end does not count as peak. Answers go
to what was stdout; whatever libraries print there goes to stderr.
"""

import gc
import json
import os
import sys
import time
from typing import Any, TextIO

from dspark_compiler.bench.contestants import CONTESTANTS, Contestant, Setup
from dspark_compiler.errors import DSparkError


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answers requests until there are no more."""

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        setup = json.loads(next(requests))
        contestant = CONTESTANTS[setup.pop("contestant")](Setup(**setup))
        answer(options=dict(contestant.options))
        for line in requests:
            request = json.loads(line)
            if request["do"] == "memory":
                answer(peak_memory_bytes=contestant.memory.peak_bytes())
            else:
                tokens, times, steps = timed(contestant, request["prompt"], request["new_tokens"])
                answer(tokens=tokens, times_ms=times, steps=steps)
            if request.get("settled"):
                contestant.memory.forget()
    except (DSparkError, OSError, ImportError) as error:
        answer(error=str(error), kind=type(error).__name__)


def timed(contestant: Contestant, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float], int]:
    """Tokens of one generation, when each was known in milliseconds after the prompt was given, and steps.

    Several tokens of one step share its time evenly, as if they had come one by one.
    """
    gc.collect()
    tokens: list[int] = []
    times: list[float] = []
    steps, previous = 0, 0.0
    began = time.perf_counter()
    for made in contestant.generate(prompt, new_tokens):
        now = (time.perf_counter() - began) * 1e3
        times += [previous + (now - previous) * (place + 1) / len(made) for place in range(len(made))]
        tokens += made
        steps, previous = steps + 1, now
    return tokens, times, steps


def main() -> None:
    """Serves stdin; keeps the real stdout for answers alone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
