"""Reads an ``.onnx`` file: whole, of an opset that is known, its weights left on disk."""

import re
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes

from dspark_compiler.errors import InputError
from dspark_compiler.frontend.onnx.branches import take_branches
from dspark_compiler.frontend.quiet import quiet

OLDEST_OPSET = 13  # the first in which axes of Squeeze, Unsqueeze and ReduceSum are inputs


def read_model(path: Path) -> ir.Model:
    """The model, its functions inlined and its constants all initializers; external data is mapped when it is read.

    Raises:
        InputError: not an ONNX file, damaged, of an old opset, or with external data that is missing or cut short.
    """
    try:
        with quiet():
            # Parses the graph alone; onnx_ir maps external data itself.
            model = ir.serde.deserialize_model(onnx.load(str(path), load_external_data=False))
    except (DecodeError, ValueError, TypeError, KeyError, OSError, ir.serde.SerdeError) as error:
        raise InputError(f"{path}: not an ONNX model, or damaged ({_first_line(error)}); export it again") from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    if len(model.graph) == 0:
        raise InputError(f"{path}: not an ONNX model, or an empty one; export it again")
    opset = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 0))
    if opset < OLDEST_OPSET:
        raise InputError(
            f"{path}: opset {opset} is too old, {OLDEST_OPSET} is the first that can be read; export the model with a "
            "later one, or convert it with onnx.version_converter"
        )
    if opset > (newest := onnx.defs.onnx_opset_version()):
        raise InputError(
            f"{path}: opset {opset} is not known here, where {newest} is the newest; export the model with an earlier "
            "one, or update the package onnx"
        )
    with quiet():
        take_branches(model)
    _check_external(model.graph, path)
    with quiet():
        Sequential(
            passes.InlinePass(),
            passes.RemoveInitializersFromInputsPass(),
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            passes.IdentityEliminationPass(),
            passes.TopologicalSortPass(),
            passes.CommonSubexpressionEliminationPass(),
        )(model)
    _rename(model.graph)
    return model


def _rename(graph: ir.Graph) -> None:
    """Gives constants names that can be a variable's but for dots: exporters use slashes, colons and bare numbers."""
    taken: set[str] = set()
    for name, value in list(graph.initializers.items()):
        plain = re.sub(r"[^\w.]+", "_", name).strip("_.") or "constant"
        plain = f"weight_{plain}" if plain[0].isdigit() else plain
        while plain.replace(".", "_") in taken:
            plain += "_"
        taken.add(plain.replace(".", "_"))
        if plain != name:
            value.name = plain


def _check_external(graph: ir.Graph, path: Path) -> None:
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            raise InputError(f"{path}: tensor {name!r} has no data; export the model again")
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        file = path.parent / tensor.location
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise InputError(f"{path}: tensor {name!r} lies outside the model's folder ({tensor.location})")
        if not file.is_file():
            raise InputError(f"{file}: missing, and tensor {name!r} of {path.name} lies in it; fetch it, too")
        begin, size = tensor.offset or 0, -(-tensor.dtype.bitwidth * tensor.size // 8)
        if tensor.length not in (None, size):
            raise InputError(
                f"{path}: tensor {name!r} takes {size} bytes, {tensor.length} are set aside; export it again"
            )
        if begin + size > file.stat().st_size:
            raise InputError(
                f"{file}: cut short, tensor {name!r} of {path.name} ends at byte {begin + size} of "
                f"{file.stat().st_size}; fetch it again"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
