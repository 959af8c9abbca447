"""Decoders read from ONNX, run by torch, beside ONNX Runtime on the file itself."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from dspark_compiler.compare.onnx_reference import OnnxReference
from dspark_compiler.frontend.onnx.file import read_model
from dspark_compiler.frontend.onnx.model import Decoder, decoder_of
from dspark_compiler.frontend.onnx.source import LoadedOnnx


def read(path: Path) -> Decoder:
    return decoder_of(read_model(path), path)


def logits(decoder: Decoder, ids: Tensor, positions: Tensor) -> Tensor:
    """[b,S,V] of the traced graph."""
    traced = decoder.trace(*ids.shape, {})
    inputs = {"input_ids": ids, "positions": positions}
    with torch.no_grad():
        (found,) = fx.Interpreter(traced.graph).run(*(inputs[n] if t is None else t for n, t in traced.refs))
    return found


def reference(path: Path, decoder: Decoder, ids: list[int]) -> np.ndarray:
    """[S,V] by ONNX Runtime."""
    (found,) = OnnxReference(LoadedOnnx(path, decoder)).logits(ids)
    return found


def attentions(decoder: Decoder) -> list[ir.Node]:
    return [node for node in decoder.graph if node.domain == "dspark" and node.op_type == "Attention"]


def options(node: ir.Node) -> tuple[float, int, float]:
    """Scale, window and softcap of an attention."""
    scale, window, softcap = (node.attributes[name].value for name in ("scale", "window", "softcap"))
    return scale, window, softcap
