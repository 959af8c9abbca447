"""Time of a decode step under ONNX Runtime: an emitted artifact and a plain export of its source, in turns.

``python -m benchmarks.onnx_decode ARTIFACT EXPORT --threads 1``, where EXPORT is a folder that
``python -m dspark_compiler.bench.onnx_export MODEL EXPORT float32`` wrote. With one thread it is the thread's own
processor time that counts, which other programs do not add to. Random caches: only the time means something.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime import InferenceSession, OrtValue, SessionOptions

from dspark_compiler.artifact import Artifact
from dspark_compiler.bench.contestants.onnx_form import FORM, Form
from dspark_compiler.runtime.executor import Executor

_WARM = 5

Step = Callable[[int], None]  # decodes one token after so many


def emitted(path: Path, threads: int) -> Step:
    """By our runtime."""
    executor = Executor(Artifact.open(path, verify=False), threads=threads)

    def step(length: int) -> None:
        executor.decode([5], [length], [length], [1]).argmax()

    return step


def plain(folder: Path, threads: int, context: int) -> Step:
    """With the past bound from each step's outputs to the next one's inputs."""
    form = Form(**json.loads((folder / FORM).read_text(encoding="utf-8")))
    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = InferenceSession(form.path, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    past = [
        OrtValue.ortvalue_from_numpy(random.standard_normal((1, heads, context, size)).astype(np.float32))
        for heads, size in form.past.values()
    ]

    def step(length: int) -> None:
        binding = session.io_binding()
        for name, numbers in ((form.ids, 5), (form.positions, length)):
            assert name is not None
            binding.bind_cpu_input(name, np.full((1, 1), numbers, np.int64))
        for name, value in zip(form.past, past, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in (form.logits, *form.present):
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        logits, *past[:] = binding.get_outputs()
        logits.numpy()[0, -1].argmax()

    return step


def main() -> None:
    """Measures what the command line names; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("export", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--context", type=int, default=128)
    given = parser.parse_args()
    clock = time.thread_time if given.threads == 1 else time.perf_counter
    steps = {
        "emitted": emitted(given.artifact, given.threads),
        "plain export": plain(given.export, given.threads, given.context),
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for length in range(given.context, given.context + _WARM + given.steps):
        for name, step in steps.items():
            began = clock()
            step(length)
            taken[name].append((clock() - began) * 1e3)
    result = {
        "onnxruntime": onnxruntime.__version__,
        "threads": given.threads,
        "clock": clock.__name__,
        "context": given.context,
        "steps": given.steps,
        "ms": {
            name: dict(zip(("p10", "p50"), np.percentile(times[_WARM:], (10, 50)).round(3).tolist(), strict=True))
            for name, times in taken.items()
        },
    }
    print(json.dumps(result, indent=1))  # noqa: T201, this is what it is for


if __name__ == "__main__":
    main()
