"""How long an artifact takes from its path to the first token."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from dspark_compiler.artifact import Artifact
from dspark_compiler.runtime.engine import Engine
from dspark_compiler.runtime.sampling import SamplingParams


def load_and_answer(path: Path, prompt: int, *, verify: bool) -> dict[str, Any]:
    """Opens, loads and reads a prompt of so many tokens; call it in a new process."""
    began = time.perf_counter()
    artifact = Artifact.open(path, verify=verify)
    opened = time.perf_counter()
    engine = Engine(artifact, heads=False)  # whose rounds would be timed first
    loaded = time.perf_counter()
    tokens = np.random.default_rng(0).integers(0, artifact.manifest.model.vocab_size, prompt).tolist()
    (completion,) = engine.complete([tokens], SamplingParams(max_new_tokens=1, ignore_eos=True))
    ended = time.perf_counter()
    assert len(completion.tokens) == 1
    return {
        "model": artifact.manifest.model.name,
        "bytes": artifact.size(),
        "verify": verify,
        "open_s": opened - began,
        "load_s": loaded - opened,
        "first_token_s": ended - loaded,
        "total_s": ended - began,
    }
