"""What ``manifest.json`` says: the typed form, its JSON and what must hold inside it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

import ml_dtypes  # noqa: F401, numpy knows bfloat16 by it
import numpy as np

from dspark_compiler import schema
from dspark_compiler.errors import ArtifactError

FORMAT_VERSION = 7
MANIFEST = "manifest.json"

# Types a tensor can have where compiled code meets the runtime. On the CPU bfloat16 is not among them: DLPack from
# numpy has no such type, so functions compiled for it take those bits as uint16.
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bfloat16", "float16", "float32", "float64"),
)

EntryKindName = Literal["prefill", "decode", "verify", "commit", "evict", "draft", "accept"]
DrafterName = Literal["dspark", "medusa", "eagle3", "ngram"]


@dataclass(frozen=True)
class ModelInfo:
    """The source model's configuration, as far as running it needs."""

    name: str
    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_positions: int | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None = None


@dataclass(frozen=True)
class TargetInfo:
    """The machine the library was compiled for; ``cpu_features`` it needs, in LLVM's or /proc/cpuinfo's spelling."""

    kind: str
    arch: str
    triple: str
    cpu_features: tuple[str, ...] = ()


@dataclass(frozen=True)
class PruningInfo:
    """How slots are evicted: what the runtime needs to call ``evict`` in time.

    ``policy`` as it was asked for; ``room`` slots that every layer has, so that many are free before the first token;
    ``block`` slots freed at a time while decoding; ``horizon`` tokens after which ``evict`` must be called though
    nothing has to go, so that it sees their queries (None: no need).
    """

    policy: str
    room: int
    block: int
    horizon: int | None


@dataclass(frozen=True)
class KVInfo:
    """``slots`` of the cache a sequence has, in each layer; ``dtype`` of the stored keys and values.

    ``pruning`` is None where every token of a sequence has a slot.
    """

    slots: int
    dtype: str
    pruning: PruningInfo | None = None


@dataclass(frozen=True)
class StepTime:
    """Milliseconds that one call takes for ``tokens`` of each sequence, all sequences of the batch together."""

    tokens: int
    ms: float


@dataclass(frozen=True)
class StepTimes:
    """What the parts of a round take on the machine they were measured on.

    ``verify`` holds one entry a width, ascending, acceptance and commit included; ``draft_ms`` is 0 without weights.
    """

    decode_ms: float
    draft_ms: float
    verify: tuple[StepTime, ...]


@dataclass(frozen=True)
class HeadsInfo:
    """The drafter of speculative rounds.

    ``block_size`` tokens it drafts; ``confidence`` says whether it gives confidences, ``temperatures`` what their
    logits are divided by, one a position (DSpark sec. 3.2.1; empty: not calibrated), ``shifts`` what is added
    then (empty: nothing). ``times`` None: not measured yet.
    """

    type: DrafterName
    name: str
    block_size: int
    confidence: bool = False
    temperatures: tuple[float, ...] = ()
    shifts: tuple[float, ...] = ()
    times: StepTimes | None = None


@dataclass(frozen=True)
class QuantizationInfo:
    """Weights kept as codes and scales: ``scheme`` as it was asked for; how many weights of each format."""

    scheme: str
    weights: Mapping[str, int]


@dataclass(frozen=True)
class TensorInfo:
    """Shape and type of a state, as lowered; zero at load."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class NamedTensor:
    """An input or output of an entry point."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ParamInfo:
    """A weight: the safetensors file that holds it, and shape and type as the compiled functions take it."""

    file: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and lower-case hexadecimal SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class EntrySpec:
    """One compiled function: its arguments are ``inputs``, then ``states``, then ``params``, in this order.

    Behind them it takes memory for the outputs that are ``destinations``, and makes them there.
    """

    kind: EntryKindName
    batch: int
    width: int
    inputs: tuple[NamedTensor, ...]
    states: tuple[str, ...]
    params: tuple[str, ...]
    outputs: tuple[NamedTensor, ...]
    destinations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The whole of ``manifest.json``. The writer fills ``params`` and ``files``.

    Paths are relative to the artifact's folder, with forward slashes.
    """

    compiler_version: str
    tvm_version: str
    model: ModelInfo
    target: TargetInfo
    dtype: str
    max_seq_len: int
    max_batch: int
    kv: KVInfo
    entry_points: Mapping[str, EntrySpec]
    states: Mapping[str, TensorInfo]
    params: Mapping[str, ParamInfo] = field(default_factory=dict)
    files: Mapping[str, FileInfo] = field(default_factory=dict)
    heads: HeadsInfo | None = None
    quantization: QuantizationInfo | None = None
    format_version: int = FORMAT_VERSION

    def dumps(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        data: dict[str, Any] = schema.to_json(self)
        return {"format_version": data.pop("format_version"), **data}

    @classmethod
    def loads(cls, text: str | bytes, where: str) -> "Manifest":
        """Reads and validates the text of a manifest; ``where`` (its path) begins error messages.

        Raises:
            ArtifactError: not JSON, of a newer format, or something in it does not hold.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{where}: not valid JSON ({error}); edited or cut short, compile again") from None
        version = data.get("format_version") if isinstance(data, dict) else None
        if type(version) is not int or version < 1:
            raise ArtifactError(f"{where}: no format_version; not an artifact of dspark-compile")
        if version > FORMAT_VERSION:
            raise ArtifactError(
                f"{where}: format {version} is newer than the format {FORMAT_VERSION} this version reads; "
                "upgrade dspark-compile, or compile again with this version"
            )
        if version < FORMAT_VERSION:
            raise ArtifactError(
                f"{where}: format {version} is older than the format {FORMAT_VERSION} this version reads; compile again"
            )
        try:
            manifest = schema.from_json(cls, data)
        except schema.MisfitError as error:
            raise ArtifactError(f"{where}: {error}; edited or damaged, compile again") from None
        manifest.validate(where)
        return manifest

    def validate(self, where: str = MANIFEST) -> None:
        """Checks what types alone cannot say.

        Raises:
            ArtifactError: naming the first field that does not hold.
        """
        for path, problem in self._problems():
            raise ArtifactError(f"{where}: {path}: {problem}; edited or damaged, compile again")

    def _problems(self) -> list[tuple[str, str]]:
        problems = [
            (path, f"{value} must be 1 or more")
            for path, value in (
                ("model.vocab_size", self.model.vocab_size),
                ("max_seq_len", self.max_seq_len),
                ("max_batch", self.max_batch),
                ("kv.slots", self.kv.slots),
            )
            if value < 1
        ]
        problems += [(f"files.{path}", "path leaves the folder") for path in self.files if not _stays_inside(path)]
        for name, param in self.params.items():
            problems += _tensor_problems(f"params.{name}", param.shape, param.dtype)
            if param.file not in self.files:
                problems.append((f"params.{name}.file", f"{param.file} is not in files"))
        for name, state in self.states.items():
            problems += _tensor_problems(f"states.{name}", state.shape, state.dtype)
        for name, entry in self.entry_points.items():
            problems += self._entry_problems(f"entry_points.{name}", entry)
        kinds = {entry.kind for entry in self.entry_points.values()}
        needed = ("prefill", "decode", *(["evict"] if self.kv.pruning is not None else []))
        problems += [("entry_points", f"no {kind}") for kind in needed if kind not in kinds]
        return problems

    def _entry_problems(self, path: str, entry: EntrySpec) -> list[tuple[str, str]]:
        problems = []
        batch = 1 if entry.kind in ("prefill", "evict") else self.max_batch
        if entry.batch != batch or entry.width < 1:
            problems.append((path, f"batch {entry.batch}, width {entry.width} do not fit max_batch {self.max_batch}"))
        problems += [(path, f"state {name} is not in states") for name in entry.states if name not in self.states]
        problems += [(path, f"parameter {name} is not in params") for name in entry.params if name not in self.params]
        unknown = set(entry.destinations).difference(tensor.name for tensor in entry.outputs)
        problems += [(path, f"destination {name} is not in outputs") for name in sorted(unknown)]
        for tensor in (*entry.inputs, *entry.outputs):
            problems += _tensor_problems(f"{path}.{tensor.name}", tensor.shape, tensor.dtype)
        return problems


def nbytes(tensor: TensorInfo | NamedTensor | ParamInfo) -> int:
    """Size in bytes."""
    return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize


def _tensor_problems(path: str, shape: tuple[int, ...], dtype: str) -> list[tuple[str, str]]:
    problems = []
    if dtype not in DTYPES:
        problems.append((path, f"type {dtype} is not one of {', '.join(DTYPES)}"))
    if any(extent < 0 for extent in shape):
        problems.append((path, f"shape {list(shape)} has a negative extent"))
    return problems


def _stays_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts and str(pure) == path and "\\" not in path
