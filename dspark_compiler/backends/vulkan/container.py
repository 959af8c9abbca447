"""The bytes of a module of kernels, as the runtime library reads them.

Eight bytes of magic, the length of a JSON text (64 bits, little endian), the text, zeros up to a multiple of four, then
the SPIR-V words of all kernels. The text says where each kernel's words lie and how it is launched.
"""

import json
import struct
from collections.abc import Sequence
from typing import Any

from dspark_compiler.backends.vulkan.arguments import Argument
from dspark_compiler.backends.vulkan.kernel import Kernel

MAGIC = b"DSPKVK01"
_WORD = 4


def pack_kernels(kernels: Sequence[Kernel]) -> bytes:
    """The bytes of a module."""
    entries, offset = [], 0
    for kernel in kernels:
        entries.append(_entry(kernel, offset))
        offset += len(kernel.code)
    text = json.dumps({"kernels": entries}, separators=(",", ":")).encode()
    head = MAGIC + struct.pack("<Q", len(text)) + text
    return head + b"\0" * (-len(head) % _WORD) + b"".join(kernel.code for kernel in kernels)


def unpack_kernels(data: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """The description and the SPIR-V of each kernel.

    Raises:
        ValueError: the bytes are no module.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("no module of Vulkan kernels")
    begin = len(MAGIC) + 8
    (length,) = struct.unpack_from("<Q", data, len(MAGIC))
    entries = json.loads(data[begin : begin + length])["kernels"]
    blob = -(-(begin + length) // _WORD) * _WORD
    return [(e, data[blob + e["offset"] : blob + e["offset"] + e["bytes"]]) for e in entries]


def _entry(kernel: Kernel, offset: int) -> dict[str, Any]:
    given_up = kernel.arguments.given_up
    return {
        "name": kernel.name,
        "offset": offset,
        "bytes": len(kernel.code),
        "args": [_argument(argument) for argument in kernel.arguments.arguments],
        "block": "push" if kernel.arguments.pushed else "address",
        "block_bytes": kernel.arguments.size,
        **({} if given_up is None else {"given_up": given_up.offset}),
        "launch": list(kernel.launch),
        "workgroup": list(kernel.workgroup),
        "shared_bytes": kernel.shared_bytes,
        "features": list(kernel.features),
        "subgroup": kernel.subgroup,
    }


def _argument(argument: Argument) -> dict[str, Any]:
    if argument.scalar is None:
        return {"kind": "buffer", "offset": argument.offset, "access": str(argument.usage)}
    return {"kind": "scalar", "offset": argument.offset, "dtype": str(argument.scalar)}
