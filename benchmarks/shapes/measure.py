"""What decoding, reading prompts and rounds take, interleaved in one process, beside what the memory allows."""

import json
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shapes.clock import GpuClock
from benchmarks.shapes.weights import random_device
from dspark_compiler.artifact import Artifact
from dspark_compiler.bench.copy_bandwidth import of_artifact
from dspark_compiler.bench.roofline import token_traffic
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.heads import make_strategy
from dspark_compiler.runtime.rounds import Anchors
from dspark_compiler.runtime.sampling import SamplingInputs, SamplingParams
from dspark_compiler.runtime.sequence import SequenceState
from dspark_compiler.runtime.strategy import Strategy, run


class Bench:
    """One artifact with random weights on the GPU, ready to be measured."""

    def __init__(self, path: Path) -> None:
        self.artifact = Artifact.open(path, verify=False)
        manifest = self.artifact.manifest
        began = time.perf_counter()
        self.device = random_device(self.artifact)
        self.executor = Executor(self.artifact, device=self.device)
        self.prepared_s = time.perf_counter() - began
        self.strategies: dict[str, Strategy] = {"decode": make_strategy(self.executor, manifest, heads=False)}
        if self.executor.block_size:
            self.strategies["rounds"] = make_strategy(self.executor, manifest, paced=False)
        self.clock = GpuClock(self.device)
        self._copies = of_artifact(self.artifact)
        self._random = np.random.default_rng(0)

    def measure(
        self, prompt: int, new: int, turns: int, contexts: tuple[int, ...], temperature: float
    ) -> dict[str, Any]:
        """All of it; lengths in tokens, ``contexts`` further ones at which single steps are timed."""
        settings = SamplingParams(max_new_tokens=new, ignore_eos=True, temperature=temperature)
        for name in self.strategies:
            self._generate(name, self._prompt(prompt), settings)
        taken: list[dict[str, float]] = []
        same = True
        for _ in range(turns):
            turn = {"copy_bytes_per_s": self._copies.measure()}
            tokens, answers = self._prompt(prompt), []
            for name in self.strategies:
                times, answer = self._generate(name, tokens, settings)
                turn |= times
                answers.append(answer)
            same = same and all(answer == answers[0] for answer in answers)
            taken.append(turn)
        found = {name: statistics.median(turn[name] for turn in taken) for name in taken[0]}
        entries = {str(at): self._entries(at, temperature) for at in (prompt, *contexts)}
        needed = token_traffic(self.artifact.manifest).bytes_at(prompt + new / 2)
        limit = needed / found["copy_bytes_per_s"] * 1e3
        manifest = self.artifact.manifest
        return {
            "model": manifest.model.name,
            "target": manifest.target.kind,
            "dtype": manifest.dtype,
            "layers": manifest.model.num_layers,
            "quantization": None if manifest.quantization is None else manifest.quantization.scheme,
            "heads": None if manifest.heads is None else manifest.heads.type,
            "quantize_heads": json.loads(self.artifact.read_text("report.json") or "{}")["options"]["quantize_heads"],
            "device": _gpu("name"),
            "versions": {"dspark-compile": manifest.compiler_version, "driver": _gpu("driver_version")},
            "prompt": prompt,
            "new": new,
            "temperature": temperature,
            "obstacle": self.device.obstacle,
            "bytes_per_token": needed,
            "limit_ms": limit,
            **found,
            "tokens_identical": same if len(self.strategies) > 1 and not temperature else None,
            "roofline_fraction": limit / found["decode_ms"],
            "entries_ms": entries,
            "memory_bytes": self.device.peak_memory_bytes(),
            "turns": taken,
        }

    def _prompt(self, length: int) -> list[int]:
        tokens: list[int] = self._random.integers(0, self.artifact.manifest.model.vocab_size, length).tolist()
        return tokens

    def _generate(self, name: str, prompt: list[int], settings: SamplingParams) -> tuple[dict[str, float], list[int]]:
        """Milliseconds to the first token, and of a step or round after it, by the host's clock; and the tokens."""
        room = self.executor.max_seq_len - len(prompt) + 1
        sequence = SequenceState(0, prompt, settings, room=room, eos_ids=frozenset(), tokenizer=None)
        began = time.perf_counter()
        stamps = [time.perf_counter() - began for _ in run(self.executor, self.strategies[name], [sequence])]
        step = (stamps[-1] - stamps[0]) / (len(stamps) - 1) * 1e3
        if name == "decode":
            return {"ttft_ms": stamps[0] * 1e3, "decode_ms": step}, sequence.tokens
        return {"round_ms": step, "tokens_a_round": (len(sequence.tokens) - 1) / sequence.rounds}, sequence.tokens

    def _entries(self, length: int, temperature: float) -> dict[str, float]:
        """Each entry point alone, replayed, in a sequence of ``length`` tokens; milliseconds."""
        found, executor = {}, self.executor
        widest = executor.verify_widths[-1]
        if length + widest > executor.max_seq_len:
            return {}
        for name, call in executor.calls.items():
            kind = self.artifact.manifest.entry_points[name].kind
            if kind == "prefill" or kind == "decode":
                at = 0 if kind == "prefill" else length
                call(input_ids=7, positions=at + np.arange(call.width)[None], sequence=0, length=at, count=call.width)
                found[name] = self.clock.replay(call) * 1e3
        anchors = Anchors(*(np.array([value]) for value in (7, length, length)))
        sampling = SamplingInputs.of(1, {0: SamplingParams(temperature=temperature)})
        numbers = np.full((1, widest), 0.5, np.float32)
        if "draft" not in executor.calls:
            for width in executor.verify_widths:
                executor.verify(np.full((1, width), 7), length + np.arange(width)[None], [length])
                found[f"verify_{width}"] = self.clock.replay(executor.calls[f"verify_{width}"]) * 1e3
            return found
        drafts = executor.draft(anchors, numbers[:, : executor.block_size], sampling)
        found["draft"] = self.clock.replay(executor.calls["draft"]) * 1e3
        for width in executor.round_widths:
            executor.speculate(anchors, drafts, [width - 1], numbers, sampling)
            executor.speculate(anchors, drafts, [width - 1], numbers, sampling)
            for name in (f"verify_{width}", f"accept_{width}"):
                found[name] = self.clock.replay(executor.calls[name]) * 1e3
        found["commit"] = self.clock.replay(executor.calls["commit"]) * 1e3
        return found


def _gpu(what: str) -> str:
    query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()[0]


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source tree"
