"""A rewritten program's entry points as ONNX models whose weights lie in files beside them."""

from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx.checker import ValidationError

from dspark_compiler.config import DType
from dspark_compiler.errors import LoweringError
from dspark_compiler.graph.program import EntryPoint, Program
from dspark_compiler.lowering.onnx.codes import pack_codes
from dspark_compiler.lowering.onnx.emitter import Emitter
from dspark_compiler.lowering.onnx.half import to_float16
from dspark_compiler.lowering.onnx.in_place import verify_in_place
from dspark_compiler.lowering.onnx.table import CONVERTERS

_IR_VERSION = 11  # of opset 23


def prepare(program: Program, dtype: DType = "float32") -> None:
    """The rewrites that only ONNX wants; ``dtype`` is what weights are stored and most is computed in."""
    verify_in_place(program)
    if dtype == "float16":
        to_float16(program)
    pack_codes(program)


def plain_params(program: Program) -> Iterator[tuple[str, np.ndarray]]:
    """The weights as the models take them, one at a time."""
    for name, tensor in program.params.items():
        yield name, tensor.detach().contiguous().numpy()


def write_models(program: Program, folder: Path, places: Mapping[str, tuple[str, int]]) -> list[Path]:
    """Writes ENTRY.onnx for each entry point that does anything.

    ``places`` says in which file, relative to the folder, and at which byte of it a weight lies.

    Raises:
        LoweringError: an operator without an ONNX form, or a model that the checker of ONNX refuses.
    """
    params = {
        name: ir.ExternalTensor(
            file,
            start,
            tensor.nbytes,
            ir.DataType.from_numpy(tensor.numpy().dtype),
            shape=ir.Shape(tensor.shape),
            name=name,
            base_dir=folder,
        )
        for name, tensor in program.params.items()
        for file, start in [places[name]]
    }
    written = []
    for entry in program.entries.values():
        model = _model(entry, params)
        if not len(model.graph):
            continue
        path = folder / f"{entry.name}.onnx"
        onnx.save(ir.to_proto(model), path)
        try:
            onnx.checker.check_model(str(path))
        except ValidationError as error:
            raise LoweringError(
                f"{entry.name}: the checker of ONNX refuses it: {str(error).splitlines()[0]}"
            ) from error
        written.append(path)
    return written


def _model(entry: EntryPoint, params: Mapping[str, ir.ExternalTensor]) -> ir.Model:
    graph = Emitter(entry, CONVERTERS, params).graph()
    version = metadata.version("dspark-compile")
    model = ir.Model(graph, ir_version=_IR_VERSION, producer_name="dspark-compile", producer_version=version)
    model.metadata_props["in_place"] = graph.metadata_props.pop("in_place")
    return model
