"""The decoder layers of a transformers model: finding them, and marking what they hand on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.graph.draft_ops import EMBEDDING


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers, in order.

    Raises:
        UnsupportedModelError: the model has no such list, or several.
    """
    count = model.config.get_text_config().num_hidden_layers
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count and _are_layers(m)]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__}: has {len(found)} lists of {count} decoder layers where one is expected, so no "
            "drafter can read its hidden states"
        )
    return found[0]


def _are_layers(modules: nn.ModuleList) -> bool:
    """Whether each holds an attention of its own; lists of a layer's parts may be as long."""
    return all(any("attn" in name or "attention" in name for name, _ in m.named_children()) for m in modules)


@contextmanager
def marked_layers(model: PreTrainedModel) -> Iterator[None]:
    """Within, each decoder layer's output passes ``dspark::layer_output``, and so does what the first one is given."""
    layers = decoder_layers(model)
    with ExitStack() as stack:
        first = layers[0].register_forward_pre_hook(_mark_input, with_kwargs=True)
        stack.callback(first.remove)
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(_mark_output(index)).remove)
        yield


def _mark(x: Tensor, layer: int) -> Tensor:
    marked: Tensor = torch.ops.dspark.layer_output(x, layer)
    return marked


def _mark_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if args:
        return (_mark(args[0], EMBEDDING), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": _mark(kwargs["hidden_states"], EMBEDDING)}


def _mark_output(index: int) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return _mark(output, index)
        return (_mark(output[0], index), *output[1:])

    return hook
