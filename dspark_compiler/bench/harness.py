"""Runs the contestants turn by turn over the same fresh prompts."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from dspark_compiler.artifact import Artifact
from dspark_compiler.bench.contestants import COMPILED, NO_HEADS, OPPONENTS, SOURCE_OPPONENTS, Setup
from dspark_compiler.bench.copy_bandwidth import of_artifact
from dspark_compiler.bench.process import ContestantProcess, Generation
from dspark_compiler.compare.origin import source_of, tokenizer_of
from dspark_compiler.compare.prompts import TextSampler
from dspark_compiler.errors import InputError
from dspark_compiler.machine.bandwidth import ReadBandwidth
from dspark_compiler.machine.load import RestWatch
from dspark_compiler.machine.processor import cores
from dspark_compiler.runtime.ort_provider import choose_provider

# Threads of the contestant before spin on for some milliseconds, and would take its successor's cores.
_PAUSE_SECONDS = 0.25

# torch.compile compiles the prompt again when it first meets a cache that was used.
_WARM_UPS = 2

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BenchConfig:
    """What to measure; lengths in tokens. ``model`` None: the model the artifact was compiled from.

    Raises:
        InputError: a value out of range, naming the option.
    """

    artifact: Path
    against: tuple[str, ...] = ()
    model: str | None = None
    prompt_len: int = 128
    new_tokens: int = 128
    repeats: int = 5
    threads: int | None = None
    verify: bool = True
    device: int = 0

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--prompt-len", self.prompt_len, 1),
            ("--new-tokens", self.new_tokens, 2),  # the second token's time is the first that counts
            ("--repeats", self.repeats, 1),
            ("--threads", 1 if self.threads is None else self.threads, 1),
        ):
            if value < least:
                raise InputError(f"{option} {value}: must be at least {least}")
        for name in self.against:
            if name not in OPPONENTS:
                raise InputError(f"--against {name}: not one of {', '.join(OPPONENTS)}")


@dataclass
class Contender:
    """A contestant's results; ``prepare_s`` is the time to load, compile and warm up.

    ``bandwidths`` are what the cores read, or the GPU copies, in bytes a second right before each generation.
    """

    name: str
    options: Mapping[str, str]
    prepare_s: float
    generations: list[Generation] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class Measurements:
    """All that was measured; generation i of each contender continues prompt i.

    ``bandwidth`` is the median of all measurements, in bytes a second; ``busy_cores`` is how many cores other programs
    kept busy while all contestants rested between turns.
    """

    artifact: Artifact
    model: str | None
    threads: int
    prompts: list[list[int]]
    contenders: list[Contender]
    bandwidth: float
    busy_cores: float

    @property
    def is_disturbed(self) -> bool:
        """Whether other programs wanted so much of the processor that times mean little."""
        return self.busy_cores > 0.1 * cores()


def measure(config: BenchConfig, progress: Progress) -> Measurements:
    """Runs the benchmark.

    Raises:
        InputError: an option that does not fit the artifact, or no source model.
        ArtifactError: the artifact cannot be used.
        DSparkError: a contestant cannot run here.
    """
    artifact = Artifact.open(config.artifact, verify=config.verify, device=config.device)
    manifest = artifact.manifest
    if (total := config.prompt_len + config.new_tokens) > manifest.max_seq_len:
        raise InputError(
            f"--prompt-len {config.prompt_len} and --new-tokens {config.new_tokens}: {total} tokens together, "
            f"the artifact holds {manifest.max_seq_len}; ask for fewer or compile with --max-seq-len {total}"
        )
    if NO_HEADS in config.against and manifest.heads is None:
        raise InputError(f"--against {NO_HEADS}: {config.artifact} has no heads; compile it with --heads")
    names = (COMPILED, *dict.fromkeys(config.against))
    needs_source = any(name in SOURCE_OPPONENTS for name in names)
    model = source_of(artifact, config.model) if needs_source else None
    threads = config.threads or cores()
    lengths = config.prompt_len, config.new_tokens
    device = choose_provider(artifact).device if manifest.target.kind == "onnxruntime" else manifest.target.kind
    setup = Setup(str(config.artifact), model, manifest.dtype, threads, *lengths, device, config.device)
    sampler = TextSampler(tokenizer_of(artifact), manifest.model.vocab_size)
    bandwidth = ReadBandwidth(threads) if device == "cpu" else of_artifact(artifact)
    rest = RestWatch()
    with ExitStack() as stack:
        contenders, processes = [], []
        for name in names:
            progress(f"prepare {name}", 0, 0)
            began = time.perf_counter()
            process = stack.enter_context(ContestantProcess(name, setup))
            for _ in range(_WARM_UPS):
                process.generate(sampler.draw(config.prompt_len), config.new_tokens, warm_up=True)
            contenders.append(Contender(name, process.options, time.perf_counter() - began))
            processes.append(process)
        prompts = [sampler.draw(config.prompt_len) for _ in range(config.repeats)]
        for turn, prompt in enumerate(prompts):
            progress("measure", turn, config.repeats)
            for index in _rotated(len(names), turn):
                rest.pause(_PAUSE_SECONDS)
                contenders[index].bandwidths.append(bandwidth.measure())
                contenders[index].generations.append(processes[index].generate(prompt, config.new_tokens))
        progress("measure", config.repeats, config.repeats)
        for contender, process in zip(contenders, processes, strict=True):
            contender.peak_memory_bytes = process.peak_memory_bytes()
    return Measurements(artifact, model, threads, prompts, contenders, bandwidth.bytes_per_second, rest.busy_cores)


def _rotated(count: int, turn: int) -> Iterator[int]:
    """0 to count - 1, each turn beginning one further, so that nobody is always first."""
    return ((turn + offset) % count for offset in range(count))
