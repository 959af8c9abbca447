"""What torch makes of a tiny model is made once a process, however many tests compile that model.

A test that saves a tiny model and compiles the folder reads another copy of weights that were traced before. Both
traces are equal, and nothing after the front end writes to them.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from transformers import PreTrainedModel

from dspark_compiler.frontend import capture

_TINY = 1 << 20  # parameters; what is larger is not kept in memory
# What a model's config and modules say of where they come from.
_UNTRACED = frozenset({"architectures", "dtype", "transformers_version", "name_or_path", "_name_or_path"})


class SharedTraces:
    """Stands in for the two dear steps of ``frontend.capture`` and remembers what they gave."""

    def __init__(self) -> None:
        self._export, self._retrace = capture._export, capture.retrace
        self._exported: dict[object, ExportedProgram] = {}
        self._retraced: dict[object, fx.GraphModule] = {}

    def export(self, model: PreTrainedModel, batch: int, width: int, *, open_lengths: bool) -> capture._Captured:
        """See ``capture._export``."""
        if sum(parameter.numel() for parameter in model.parameters()) > _TINY:
            return self._export(model, batch, width, open_lengths=open_lengths)
        key = (batch, width, open_lengths, _identity(model))
        if key not in self._exported:
            self._exported[key] = self._export(model, batch, width, open_lengths=open_lengths).exported
        exported = self._exported[key]
        return capture._Captured(exported, capture._refs(model, exported))

    def retrace(self, exported: ExportedProgram, arguments: Sequence[Tensor]) -> fx.GraphModule:
        """See ``retrace.retrace``."""
        if not any(exported is known for known in self._exported.values()):
            return self._retrace(exported, arguments)
        key = (id(exported), *(argument.shape for argument in arguments))
        if key not in self._retraced:
            self._retraced[key] = self._retrace(exported, arguments)
        return self._retraced[key]


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
