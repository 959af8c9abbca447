"""The source model as ONNX with past keys and values in and out, for ONNX Runtime: exported, or the file that it is.

A process of its own (``python -m dspark_compiler.bench.onnx_export MODEL FOLDER DTYPE``), so that torch's memory is not
counted as ONNX Runtime's. FOLDER/form.json says what there is to run (see ``Form``).
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from dspark_compiler.bench.contestants.onnx_form import FORM, Form
from dspark_compiler.compare.eager import cache_keyword
from dspark_compiler.errors import DSparkError, InputError
from dspark_compiler.frontend.onnx.inputs import find_inputs
from dspark_compiler.frontend.onnx.source import ONNX_SUFFIX, onnx_file_of
from dspark_compiler.frontend.source import open_source

OPSET = 23  # the first with attention, rotary embedding and RMS norm as operators

_Past = list[tuple[torch.Tensor, torch.Tensor]]


class _WithPast(nn.Module):
    """ids and positions [1, N], and keys and values [1, G, P, D] a layer -> last logits [1, 1, V], and those grown."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._keyword = cache_keyword(model)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, past: _Past) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache(config=self.model.config)
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        options: dict[str, Any] = {self._keyword: cache, "use_cache": True, "logits_to_keep": 1}
        logits = self.model(ids, position_ids=positions, **options).logits
        return (logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def export(model: PreTrainedModel, path: Path) -> None:
    """Writes ``path``, with the weights in a file beside it."""
    module = _WithPast(model).eval()
    past = _example_past(model)
    names = [f"{layer}.{kind}" for layer in range(len(past)) for kind in ("key", "value")]
    grown = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        module,
        (torch.ones((1, 5), dtype=torch.int64), torch.arange(7, 12)[None], past),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes={"ids": {1: grown}, "positions": {1: grown}, "past": [({2: grown}, {2: grown})] * len(past)},
        input_names=["ids", "positions", *(f"past.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
        verbose=False,
    )
    assert program is not None, "dynamo=True returns the program"
    program.save(str(path), external_data=True)


def _example_past(model: PreTrainedModel) -> _Past:
    """Keys and values of seven tokens, of the shapes the model itself makes."""
    cache = DynamicCache(config=model.config)
    options: dict[str, Any] = {cache_keyword(model): cache, "use_cache": True}
    with torch.inference_mode():
        model(torch.ones((1, 7), dtype=torch.int64), **options)
    # Tensors made in inference mode cannot be traced.
    return [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]


def form_of(path: Path, origin: str) -> Form:
    """How a decoder's file is driven.

    Raises:
        InputError: it has no past to be given, or other inputs than token ids, a mask, positions and a past.
    """
    graph = ir.load(path).graph
    inputs = find_inputs(graph, path)
    names = [value.name or "" for value in graph.outputs]
    logits = "logits" if "logits" in names else names[0]
    present = [name for name in names if name != logits]
    if not inputs.past or len(present) != len(inputs.past) or inputs.lengths:
        lacking = "inputs that are lengths" if inputs.lengths else "no past keys and values in and out"
        raise InputError(f"{path}: has {lacking}, so that nothing can be compared step by step; export it with a past")
    past = {value.name or "": [int(str(value.shape[axis])) for axis in (1, 3)] for value in inputs.past if value.shape}
    kinds = {value.name or "": value.dtype.numpy().name for value in graph.inputs if value.dtype is not None}
    named = (inputs.mask, inputs.positions, inputs.branch)
    mask, positions, branch = (None if value is None else value.name for value in named)
    return Form(str(path), origin, inputs.ids.name or "", mask, positions, past, kinds, logits, present, branch)


def main() -> None:
    """Exports what the command line names, or finds the file that it is, and says how it is driven."""
    model, folder, dtype = sys.argv[1:]
    try:
        given = Path(model)
        file = onnx_file_of(given) if given.is_dir() else given if given.suffix == ONNX_SUFFIX else None
        if file is not None:
            form = form_of(file.absolute(), "the source's own file")
        else:
            path = Path(folder) / "model.onnx"
            export(open_source(model).load(getattr(torch, dtype)), path)
            form = form_of(path, f"torch.onnx.export(dynamo=True), opset {OPSET}")
        (Path(folder) / FORM).write_text(json.dumps(dataclasses.asdict(form)), encoding="utf-8")
    except DSparkError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
