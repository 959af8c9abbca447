"""Trains heads for a model: read prompts, let the model answer them, fit a drafter, judge it."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dspark_compiler.errors import InputError
from dspark_compiler.frontend.fingerprint import target_identity
from dspark_compiler.frontend.source import open_source
from dspark_compiler.models.drafters.dspark import DSparkDrafter
from dspark_compiler.models.drafters.heads import Heads
from dspark_compiler.training.heads.anchors import Sequences, join
from dspark_compiler.training.heads.drafter import begin, drafter_config, read_start
from dspark_compiler.training.heads.earlier import read_earlier, without_prompts
from dspark_compiler.training.heads.fit import Fit
from dspark_compiler.training.heads.interrupts import deferred
from dspark_compiler.training.heads.options import TrainingOptions
from dspark_compiler.training.heads.questions import Questions, TextFolder, encode_questions
from dspark_compiler.training.heads.report import Report
from dspark_compiler.training.heads.sequences import write_sequences
from dspark_compiler.training.heads.target import FrozenTarget
from dspark_compiler.training.heads.work import Work
from dspark_compiler.training.prompts import read_prompts

_HELD_OUT = 32  # every so many prompts, one judges instead of teaching
_MOST_JUDGED = 512  # sequences
_PACKAGES = ("dspark-compile", "torch", "transformers")


def train_heads(
    model: str,
    files: Sequence[Path],
    output: Path,
    options: TrainingOptions,
    report: Report,
    earlier: Sequence[Path] = (),
) -> Heads:
    """Heads for the model that ``model`` names; what it needs to go on after an interrupt is in ``OUTPUT.work``.

    ``earlier`` are such folders of runs before, whose sequences teach too.

    Raises:
        InputError: a model, file or option that cannot be used, or a work folder of other options.
        UnsupportedModelError: a model heads cannot be trained for.
        KeyboardInterrupt: SIGINT or SIGTERM came; the work folder is up to date.
    """
    source = open_source(model)
    device = choose_device(options.device)
    report("read prompts")
    prompts = read_prompts(files)
    with tempfile.TemporaryDirectory() as directory:
        folder = TextFolder(Path(directory))
        questions = encode_questions(source, folder, prompts, options.generation.max_length, report)
        # It must not look back at more than it was trained on.
        window = options.generation.max_length
        config = drafter_config(source, options.drafter, folder.path / "tokenizer.json", window)
    start = read_start(options.drafter.init, config)
    taught = read_earlier([Work(folder) for folder in earlier], source.name, window)
    work = Work(Path(f"{output}.work"))
    asked = options.to_json()
    origin = {"model": source.name, "data": [file.name for file in files], "prompts": questions.digest()}
    work.claim("generation", origin | asked["generation"], str(work.path))
    learnt = asked["drafter"] | asked["fit"] | {"sequences": [str(folder) for folder in earlier]}
    work.claim("training", learnt, f"{work.path}/training.json and checkpoint.pt")
    report("load model")
    target = FrozenTarget(source, device)
    with deferred() as interrupt:
        sequences = write_sequences(target, questions.ids, questions.times, options.generation, work, interrupt, report)
        kept = keep_prompts(len(questions.ids), options.fit.seed)
        teaching, judging = split(sequences, kept)
        if taught is not None:
            judged = [questions.ids[i] for i in kept.nonzero()[:, 0].tolist()]
            teaching = join([teaching, without_prompts(useful(taught), judged)])
        drafter = DSparkDrafter(config)
        begin(drafter, target, options.drafter, options.fit.seed, start)
        fit = Fit(drafter.to(device), target, teaching, options.fit)
        if (state := work.checkpoint(device)) is not None:
            fit.restore(state)
        fit.run(interrupt, lambda: work.write_checkpoint(fit.state()), options.checkpoint_every, report)
    report("judge")
    drafter.eval()
    facts = _facts(files, options, device, fit, teaching) | _judge(fit, judging, questions)
    return Heads(drafter.float().cpu(), target_identity(source), training=facts)


def choose_device(name: str | None) -> torch.device:
    """The device of that name; by default a GPU if there is one.

    Raises:
        InputError: there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"--device {name}: not here; give cpu{' or cuda' if torch.cuda.is_available() else ''}")
    return torch.device(name)


def keep_prompts(prompts: int, seed: int) -> torch.Tensor:
    """Which prompts judge in place of teaching, bool [prompts]."""
    order = torch.randperm(prompts, generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(prompts, dtype=torch.bool)
    kept[order[: max(1, prompts // _HELD_OUT)]] = True
    return kept


def split(sequences: Sequences, kept: torch.Tensor) -> tuple[Sequences, Sequences]:
    """Sequences to teach and to judge by: those whose prompt is ``kept`` judge."""
    sequences = useful(sequences)
    judges = kept[sequences.origin.long()]
    teaching, judging = (sequences.select(chosen.nonzero()[:, 0]) for chosen in (~judges, judges))
    if not len(teaching) or not len(judging):
        raise InputError("--data: the model ends most answers at once; give more prompts, or more --samples")
    return teaching, judging


def useful(sequences: Sequences) -> Sequences:
    """Those with something to predict."""
    return sequences.select((sequences.length - sequences.prompt >= 2).nonzero()[:, 0])


def _judge(fit: Fit, judging: Sequences, questions: Questions) -> dict[str, Any]:
    """Quality with and without the sequential head, and tau by the file the prompts came from."""
    found = {"with_sequential_head": asdict(fit.judge(_some(judging)))}
    if fit.drafter.markov_head is not None:
        found["without_sequential_head"] = asdict(fit.judge(_some(judging), sequential=False))
    origin = judging.origin.tolist()
    by_file = {}
    for name in dict.fromkeys(questions.files):
        chosen = torch.tensor([i for i, prompt in enumerate(origin) if questions.files[prompt] == name])
        if len(chosen):
            by_file[name] = fit.judge(_some(judging.select(chosen))).tau
    return {"held_out": found, "held_out_tau": by_file}


def _some(sequences: Sequences) -> Sequences:
    """As many as suffice to judge by."""
    return sequences.select(torch.arange(0, len(sequences), max(1, len(sequences) // _MOST_JUDGED)))


def _facts(
    files: Sequence[Path],
    options: TrainingOptions,
    device: torch.device,
    fit: Fit,
    teaching: Sequences,
) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "options": options.to_json(),
        "data": [file.name for file in files],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "sequences": len(teaching),
        "tokens": int((teaching.length - teaching.prompt).sum()),
        "steps": fit.step,
        "seconds": round(fit.seconds, 1),
        "device": name,
        "versions": {package: _version(package) for package in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"  # run from its source tree
