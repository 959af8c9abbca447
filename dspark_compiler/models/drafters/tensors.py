"""Weights of drafters on disk: read with every doubt settled, put into a module, none missing and none left over."""

import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dspark_compiler.errors import InputError

# Anything else would be numbers in a code that is not ours to guess.
READABLE = (torch.bfloat16, torch.float16, torch.float32)

AGAIN = "get or make the heads again"


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as they are stored.

    Raises:
        InputError: not there, cut short or damaged.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file; {AGAIN}")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, struct.error) as error:
        raise InputError(f"{file}: cut short or damaged ({error}); {AGAIN}") from error


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Puts tensors in the module's places, as float32.

    Raises:
        InputError: naming the first that is missing, has no place, or is misshapen, of a type we do not read, or not
            finite; ``where`` begins the message.
    """
    places = module.state_dict()
    for what, names in (
        ("is missing", sorted(places.keys() - tensors.keys())),
        ("has no place in the drafter its config describes", sorted(tensors.keys() - places.keys())),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise InputError(f"{where}: tensor {names[0]} {what}{more}; {AGAIN}")
    for name, place in places.items():
        tensor = tensors[name]
        if tensor.shape != place.shape:
            raise InputError(
                f"{where}: tensor {name} has shape {tuple(tensor.shape)}, its config says {tuple(place.shape)}; {AGAIN}"
            )
        if tensor.dtype not in READABLE:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"{where}: tensor {name} is {kind}; only bfloat16, float16 and float32 are read")
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{where}: tensor {name} holds numbers that are not finite; {AGAIN}")
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
