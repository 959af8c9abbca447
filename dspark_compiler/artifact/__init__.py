"""The artifact folder: manifest, compiled library, weights and tokenizer; written atomically, opened with checks."""

from dspark_compiler.artifact.manifest import (
    FORMAT_VERSION,
    EntrySpec,
    FileInfo,
    HeadsInfo,
    KVInfo,
    Manifest,
    ModelInfo,
    NamedTensor,
    ParamInfo,
    PruningInfo,
    QuantizationInfo,
    StepTime,
    StepTimes,
    TargetInfo,
    TensorInfo,
    nbytes,
)
from dspark_compiler.artifact.reader import Artifact
from dspark_compiler.artifact.tensors import aligned_zeros
from dspark_compiler.artifact.writer import ArtifactWriter, check_destination

__all__ = [
    "FORMAT_VERSION",
    "Artifact",
    "ArtifactWriter",
    "EntrySpec",
    "FileInfo",
    "HeadsInfo",
    "KVInfo",
    "Manifest",
    "ModelInfo",
    "NamedTensor",
    "ParamInfo",
    "PruningInfo",
    "QuantizationInfo",
    "StepTime",
    "StepTimes",
    "TargetInfo",
    "TensorInfo",
    "aligned_zeros",
    "check_destination",
    "nbytes",
]
