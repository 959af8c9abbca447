"""Rope whose frequencies depend on the length of the text, settled for one compile.

Keys are cached after rope, so frequencies cannot change as a conversation grows. ``--max-seq-len`` decides: longrope
takes its long factors if texts may exceed the original length, else its short ones; dynamic scaling is compiled where
it cannot set in, and refused elsewhere.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dspark_compiler.errors import UnsupportedModelError

_LONGROPE = "longrope"
_STATIC = "default"


@contextmanager
def settled_rope(model: nn.Module, max_seq_len: int) -> Iterator[None]:
    """Within, no rotary embedding of ``model`` looks at the length of the text; as before afterwards.

    Raises:
        UnsupportedModelError: dynamic scaling would set in before ``max_seq_len`` tokens.
    """
    with ExitStack() as stack:
        for name, module in model.named_modules():
            rope_type = getattr(module, "rope_type", None)
            if isinstance(rope_type, str):
                static = _settle(stack, name, module, rope_type, None, max_seq_len)
                _replace(stack, module, "rope_type", static)
            elif isinstance(rope_type, dict):  # one a layer type (Gemma 3)
                static_types = {t: _settle(stack, name, module, r, t, max_seq_len) for t, r in rope_type.items()}
                _replace(stack, module, "rope_type", static_types)
        yield


def _settle(
    stack: ExitStack, name: str, module: nn.Module, rope_type: str, layer_type: str | None, max_seq_len: int
) -> str:
    """Puts the frequencies for ``max_seq_len`` into the module; returns the rope type that keeps them."""
    if "dynamic" in rope_type:
        limit = int(getattr(module, "original_max_seq_len", 0))
        if max_seq_len > limit:
            raise UnsupportedModelError(
                f"{name}: dynamic rope scaling changes with the length beyond {limit} tokens; "
                f"compile with --max-seq-len {limit} or less"
            )
        return _STATIC
    if rope_type != _LONGROPE:
        return rope_type
    _replace_buffer(stack, module, _buffer("inv_freq", layer_type), _longrope(module, layer_type, max_seq_len))
    return _STATIC


def _longrope(module: nn.Module, layer_type: str | None, max_seq_len: int) -> Tensor:
    """Inverse frequencies [D/2] of longrope for texts of up to ``max_seq_len`` tokens."""
    config: Any = module.config
    parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    original = int(parameters["original_max_position_embeddings"])
    if max_seq_len <= original:
        short: Tensor = getattr(module, _buffer("original_inv_freq", layer_type))
        return short
    arguments = {} if layer_type is None else {"layer_type": layer_type}
    long: Tensor = ROPE_INIT_FUNCTIONS[_LONGROPE](config, torch.device("cpu"), seq_len=original + 1, **arguments)[0]
    return long


def _buffer(name: str, layer_type: str | None) -> str:
    return name if layer_type is None else f"{layer_type}_{name}"


def _replace(stack: ExitStack, module: nn.Module, attribute: str, value: object) -> None:
    stack.callback(setattr, module, attribute, getattr(module, attribute))
    setattr(module, attribute, value)


def _replace_buffer(stack: ExitStack, module: nn.Module, name: str, value: Tensor) -> None:
    stack.callback(module.register_buffer, name, getattr(module, name), persistent=False)
    module.register_buffer(name, value, persistent=False)
