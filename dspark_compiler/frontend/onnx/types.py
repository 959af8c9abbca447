"""Element types and weights between ONNX and torch.

Numbers of 16 and 32 bits all become float32: it is what the compiler computes in, whatever a file stores.
"""

import warnings

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from dspark_compiler.errors import InputError

DTYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float32,
    ir.DataType.BFLOAT16: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}

ONNX_TYPES: dict[torch.dtype, ir.DataType] = {
    torch.float32: ir.DataType.FLOAT,
    torch.float64: ir.DataType.DOUBLE,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
}


def dtype_of(kind: ir.DataType, where: str) -> torch.dtype:
    """The type we compute in for an ONNX element type; ``where`` names its place for the message.

    Raises:
        InputError: a type without one.
    """
    found = DTYPES.get(ir.DataType(kind))
    if found is None:
        raise InputError(
            f"{where}: elements of type {ir.DataType(kind).name} cannot be read; export in float32 or float16"
        )
    return found


def read(tensor: ir.TensorProtocol) -> Tensor:
    """The tensor's numbers; what is float32 in a file of its own stays mapped there, not copied.

    Raises:
        InputError: a type that cannot be read, or data that is missing or cut short.
    """
    where = f"tensor {tensor.name!r}"
    dtype = dtype_of(tensor.dtype, where)
    try:
        array = np.asarray(tensor.numpy())
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: cannot be read ({error}); fetch the model and its external data again") from error
    if tensor.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        array = array.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch cannot know that nobody writes to a mapped file
        return torch.from_numpy(np.ascontiguousarray(array)).to(dtype).view(tuple(tensor.shape.numpy()))
