"""Root-mean-square normalisation, rounded at once where only products read it."""

import math
from typing import Any

from torch import fx

from dspark_compiler.lowering.cuda.operands import out_dtype
from dspark_compiler.lowering.importer import EntryImporter
from dspark_compiler.lowering.layout import PhysicalTensor
from dspark_compiler.lowering.nodes import args_of, identifier, shape_of


def rms_norm(node: fx.Node, importer: EntryImporter) -> Any:
    """dspark.rms_norm(x, weight, eps)."""
    x, weight, eps = args_of(node)
    *lead, depth = shape_of(node)
    rows, stored = math.prod(lead), out_dtype(node, importer.plan)
    name = identifier(f"rms_norm_{rows}x{depth}_{eps:.3e}_{stored}" + ("" if weight is None else "_weight"))
    kernel = importer.template("rms_norm", name, rows, depth, eps, weighted=weight is not None, out_dtype=stored)
    args = [importer.reshape(importer.env[x], (rows, depth))]
    if weight is not None:
        args.append(importer.env[weight])
    return importer.reshape(importer.call(kernel, args, PhysicalTensor((rows, depth), stored)), shape_of(node))
