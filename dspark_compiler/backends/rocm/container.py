"""The bytes of a module of kernels, as the runtime library reads them (rocm_runtime/kernel.h).

Eight bytes of magic, the length of a JSON text (64 bits, little endian), the text, the code object.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

from dspark_compiler.backends.rocm.code_object import KernelInfo, read_kernels

MAGIC = b"DSPKHIP1"
_SCALARS = {"int32": 4, "uint32": 4, "int64": 8, "uint64": 8, "float32": 4, "float64": 8}
_BUFFER, _BUFFER_BYTES = "handle", 8


def pack_module(arch: str, code: bytes, functions: Mapping[str, Any]) -> bytes:
    """The bytes of a module; ``functions`` are TVM's runtime.FunctionInfo of its kernels.

    Raises:
        ValueError: a kernel is not what TVM is going to call.
    """
    kernels = read_kernels(code)
    entries = [_entry(str(name), function, kernels) for name, function in functions.items()]
    text = json.dumps({"arch": arch, "kernels": entries}, separators=(",", ":")).encode()
    return MAGIC + struct.pack("<Q", len(text)) + text + code


def unpack_module(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The description of a module and its code object.

    Raises:
        ValueError: the bytes are no module.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("no module of ROCm kernels")
    begin = len(MAGIC) + 8
    (length,) = struct.unpack_from("<Q", data, len(MAGIC))
    return json.loads(data[begin : begin + length]), data[begin + length :]


def _entry(name: str, function: Any, kernels: Mapping[str, KernelInfo]) -> dict[str, Any]:
    kernel = kernels.get(name)
    types = [str(dtype) for dtype in function.arg_types]
    sizes = [_BUFFER_BYTES if dtype == _BUFFER else _SCALARS.get(dtype) for dtype in types]
    if kernel is None or sizes != [argument.size for argument in kernel.arguments]:
        raise ValueError(f"kernel {name}: its code takes other arguments than {', '.join(types)}")
    return {
        "name": name,
        "args": [
            {"kind": "buffer" if dtype == _BUFFER else dtype, "offset": argument.offset}
            for dtype, argument in zip(types, kernel.arguments, strict=True)
        ],
        "argument_bytes": kernel.argument_bytes,
        "launch": [str(tag) for tag in function.launch_param_tags],
        "most_threads": kernel.most_threads,
    }
