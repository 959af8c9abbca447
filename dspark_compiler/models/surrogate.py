"""KVzap surrogates: per layer, a small network that reads off a token's hidden state how much its key will matter.

Devoto et al. 2026 (arXiv 2601.07891), sec. 3. K: the model's hidden size, G: its key/value heads. A layer's network
maps what the layer's query, key and value projections read, [..., K], to a score per key/value head, [..., G]: either
linear, or linear, gelu (tanh form), linear. Scores are logarithms of importance; within a head, the lowest go first.

In the file (safetensors): ``layers.{i}.up.weight``, ``.up.bias``, ``.down.weight``, ``.down.bias``, or
``layers.{i}.linear.weight`` and ``.bias``; weights are float16, biases float32. Everything else stands in the metadata.
"""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import gelu, linear

from dspark_compiler.errors import InputError

FORMAT = "dspark-kvzap-1"

_LINEAR, _UP, _DOWN = "linear", "up", "down"
_TRAIN_ONE = "train one with dspark kvzap train"


@dataclass(frozen=True)
class Affine:
    """x @ weight.T + bias: weight [out, in], bias [out]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Surrogate:
    """The networks of all layers, and what model they belong to.

    ``layers`` holds one ``Affine`` a layer, or two with a gelu between. ``correlation`` and ``r2`` say, for each layer,
    how well predictions follow the target on text held out from training, averaged over heads; ``training`` how it was
    made.
    """

    model: str
    hidden_size: int
    kv_heads: int
    layers: tuple[tuple[Affine, ...], ...]
    training: Mapping[str, Any]
    correlation: tuple[float, ...]
    r2: tuple[float, ...]

    def score(self, layer: int, hidden: Tensor) -> Tensor:
        """The scores of tokens: hidden [..., K] -> [..., G]."""
        return apply(self.layers[layer], hidden)

    def check_fits(self, where: str, hidden_size: int, num_layers: int, kv_heads: int) -> None:
        """Refuses a model of other sizes; ``where`` names the surrogate's file.

        Raises:
            InputError: names the first size that differs.
        """
        for what, own, wanted in (
            ("layers", len(self.layers), num_layers),
            ("hidden size", self.hidden_size, hidden_size),
            ("key/value heads", self.kv_heads, kv_heads),
        ):
            if own != wanted:
                raise InputError(
                    f"{where}: was trained for {self.model} ({what}: {own}), the model has {wanted}; {_TRAIN_ONE}"
                )


def apply(affines: tuple[Affine, ...], x: Tensor) -> Tensor:
    """One layer's network: x [..., K] -> [..., G]."""
    first, *rest = affines
    out = linear(x, first.weight, first.bias)
    for affine in rest:
        out = linear(gelu(out, approximate="tanh"), affine.weight, affine.bias)
    return out


def stored(weight: Tensor) -> Tensor:
    """A weight as it will come back from a file."""
    return weight.half().float()


def write_surrogate(path: Path, surrogate: Surrogate) -> None:
    """Writes the file, all at once or not at all."""
    tensors: dict[str, Tensor] = {}
    for index, affines in enumerate(surrogate.layers):
        for name, affine in zip(_names(len(affines)), affines, strict=True):
            tensors[f"layers.{index}.{name}.weight"] = affine.weight.half().contiguous()
            tensors[f"layers.{index}.{name}.bias"] = affine.bias.contiguous()
    metadata = {
        "format": FORMAT,
        "model": surrogate.model,
        "hidden_size": str(surrogate.hidden_size),
        "num_layers": str(len(surrogate.layers)),
        "kv_heads": str(surrogate.kv_heads),
        "training": json.dumps(dict(surrogate.training)),
        "correlation": json.dumps([round(value, 4) for value in surrogate.correlation]),
        "r2": json.dumps([round(value, 4) for value in surrogate.r2]),
    }
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(save(tensors, metadata))
    os.replace(partial, path)


def read_surrogate(path: Path) -> Surrogate:
    """The surrogate of a file, weights as float32.

    Raises:
        InputError: no such file, not a surrogate, or one that is damaged; says which part.
    """
    metadata, tensors = _contents(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: not a KVzap surrogate of format {FORMAT}; {_TRAIN_ONE}")
    hidden_size, num_layers, kv_heads = (_size(path, metadata, n) for n in ("hidden_size", "num_layers", "kv_heads"))
    layers = tuple(_layer(path, tensors, index, hidden_size, kv_heads) for index in range(num_layers))
    if tensors:
        raise InputError(f"{path}: tensor {min(tensors)} belongs to no layer; {_TRAIN_ONE}")
    training = _json(path, metadata, "training")
    if not isinstance(training, dict):
        raise InputError(f"{path}: damaged metadata (training); {_TRAIN_ONE}")
    return Surrogate(
        model=metadata.get("model", "an unnamed model"),
        hidden_size=hidden_size,
        kv_heads=kv_heads,
        layers=layers,
        training=training,
        correlation=_per_layer(path, metadata, "correlation", num_layers),
        r2=_per_layer(path, metadata, "r2", num_layers),
    )


def _names(affines: int) -> tuple[str, ...]:
    return (_LINEAR,) if affines == 1 else (_UP, _DOWN)


def _contents(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; {_TRAIN_ONE}")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, struct.error) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); {_TRAIN_ONE}") from error


def _size(path: Path, metadata: Mapping[str, str], name: str) -> int:
    text = metadata.get(name, "")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{path}: damaged metadata ({name} is {text!r}); {_TRAIN_ONE}")
    return int(text)


def _json(path: Path, metadata: Mapping[str, str], name: str) -> Any:
    try:
        return json.loads(metadata.get(name, ""))
    except ValueError as error:
        raise InputError(f"{path}: damaged metadata ({name}: {error}); {_TRAIN_ONE}") from error


def _per_layer(path: Path, metadata: Mapping[str, str], name: str, num_layers: int) -> tuple[float, ...]:
    values = _json(path, metadata, name)
    if not isinstance(values, list) or len(values) != num_layers or not all(isinstance(v, int | float) for v in values):
        raise InputError(f"{path}: damaged metadata ({name} holds no number for each layer); {_TRAIN_ONE}")
    return tuple(map(float, values))


def _layer(path: Path, tensors: dict[str, Tensor], index: int, hidden_size: int, kv_heads: int) -> tuple[Affine, ...]:
    """Takes one layer's tensors out of ``tensors``."""
    names = _names(1 if f"layers.{index}.{_LINEAR}.weight" in tensors else 2)
    affines = []
    inputs = hidden_size
    for name in names:
        stem = f"layers.{index}.{name}"
        weight = _tensor(path, tensors, f"{stem}.weight", 2)
        outputs = kv_heads if name == names[-1] else weight.shape[0]
        bias = _tensor(path, tensors, f"{stem}.bias", 1)
        if weight.shape != (outputs, inputs) or bias.shape != (outputs,):
            found = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            raise InputError(
                f"{path}: {stem} has shapes {found}, not {(outputs, inputs)} and {(outputs,)}; {_TRAIN_ONE}"
            )
        affines.append(Affine(weight, bias))
        inputs = outputs
    return tuple(affines)


def _tensor(path: Path, tensors: dict[str, Tensor], name: str, dimensions: int) -> Tensor:
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise InputError(f"{path}: tensor {name} is missing; {_TRAIN_ONE}")
    if tensor.ndim != dimensions or not tensor.is_floating_point() or not torch.isfinite(tensor).all():
        raise InputError(f"{path}: tensor {name} is not {dimensions}-dimensional with finite numbers; {_TRAIN_ONE}")
    return tensor.float()
