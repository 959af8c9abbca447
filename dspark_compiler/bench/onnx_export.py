"""The source model as ONNX with past keys and values in and out, for ONNX Runtime: exported, or the file that it is.

A process of its own (``python -m dspark_compiler.bench.onnx_export MODEL FOLDER DTYPE``), so that torch's memory is not
counted as ONNX Runtime's. FOLDER/form.json says what there is to run (see ``Form``).
"""

import dataclasses
import json
import sys
from pathlib import Path

import onnx_ir as ir

from dspark_compiler.bench.contestants.onnx_form import FORM, Form
from dspark_compiler.errors import DSparkError, InputError
from dspark_compiler.frontend.onnx.inputs import find_inputs
from dspark_compiler.frontend.onnx.on_disk import ONNX_SUFFIX, onnx_file_of


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
            from dspark_compiler.bench import onnx_past  # brings transformers, which a file does without

            path = Path(folder) / "model.onnx"
            onnx_past.export(model, dtype, path)
            form = form_of(path, f"torch.onnx.export(dynamo=True), opset {onnx_past.OPSET}")
        (Path(folder) / FORM).write_text(json.dumps(dataclasses.asdict(form)), encoding="utf-8")
    except DSparkError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
