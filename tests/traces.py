"""What torch makes of a tiny model is made once a process, however many tests compile that model.

A test that saves a tiny model and compiles the folder reads another copy of weights that were traced before. Both
traces are equal, and nothing after the front end writes to them.
"""

import hashlib
import json
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from dspark_compiler.frontend import capture
from dspark_compiler.frontend.tracing import Traced

_TINY = 1 << 20  # parameters; what is larger is not kept in memory
# What a model's config and modules say of where they come from.
_UNTRACED = frozenset({"architectures", "dtype", "transformers_version", "name_or_path", "_name_or_path"})


class SharedTraces:
    """Stands in for the dear step of ``frontend.capture`` and remembers what it gave."""

    def __init__(self) -> None:
        self._trace = capture.model_graph
        self._traced: dict[object, Traced] = {}

    def trace(self, model: PreTrainedModel, batch: int, width: int) -> Traced:
        """See ``model_graph``."""
        if sum(parameter.numel() for parameter in model.parameters()) > _TINY:
            return self._trace(model, batch, width)
        key = (batch, width, _identity(model))
        if key not in self._traced:
            self._traced[key] = self._trace(model, batch, width)
        traced = self._traced[key]
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        refs = ((name, own[name].detach() if name in own else tensor) for name, tensor in traced.refs)
        return Traced(traced.graph, tuple(refs))


def one_process(name: str) -> pytest.MarkDecorator:
    """Tests of the tiny model of that name, wherever they are, run in the process that traced it."""
    return pytest.mark.xdist_group(f"tiny-{name}")


@cache
def shared_traces() -> SharedTraces:
    """Those of this process."""
    return SharedTraces()


def _identity(model: PreTrainedModel) -> tuple[object, ...]:
    """All that a trace depends on: classes, their settings and hooks, and weights."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _UNTRACED}
    parts: list[object] = [json.dumps(config, sort_keys=True, default=str)]
    weights = hashlib.sha256()
    for name, module in model.named_modules():
        plain = ((k, v) for k, v in vars(module).items() if isinstance(v, bool | int | float | str))
        settings = sorted((k, v) for k, v in plain if k not in _UNTRACED and not k.startswith("_"))
        parts += [name, type(module), *settings, len(module._forward_hooks), len(module._forward_pre_hooks)]
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        parts += [name, tensor.dtype, tensor.shape, tensor.data_ptr() == model.get_input_embeddings().weight.data_ptr()]
        weights.update(tensor.detach().reshape(-1).view(torch.uint8).numpy())
    return (*parts, weights.digest())
