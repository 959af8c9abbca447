"""Kernels written by hand, and modules of them."""

import functools
import json
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.vulkan.device import need_assembler

THREADS = 64

# y[i] = a * x[i] + y[i] for i < n; the arguments x, y, a, n lie in the block BLOCK is the storage class of.
_AXPY = """
OpCapability Shader
OpCapability Int64
OpCapability PhysicalStorageBufferAddresses
OpExtension "SPV_KHR_physical_storage_buffer"
OpMemoryModel PhysicalStorageBuffer64 GLSL450
OpEntryPoint GLCompute %main "main" %gid %pushed
OpExecutionMode %main LocalSize 64 1 1
OpDecorate %gid BuiltIn GlobalInvocationId
OpDecorate %block Block
OpMemberDecorate %block 0 Offset 0
OpMemberDecorate %block 1 Offset 8
OpMemberDecorate %block 2 Offset 16
OpMemberDecorate %block 3 Offset 20
OpDecorate %floats ArrayStride 4
OpDecorate %buffer Block
OpMemberDecorate %buffer 0 Offset 0
OUTER_DECORATIONS
%void = OpTypeVoid
%signature = OpTypeFunction %void
%u32 = OpTypeInt 32 0
%f32 = OpTypeFloat 32
%bool = OpTypeBool
%v3 = OpTypeVector %u32 3
%gid_pointer = OpTypePointer Input %v3
%gid = OpVariable %gid_pointer Input
%floats = OpTypeRuntimeArray %f32
%buffer = OpTypeStruct %floats
%address = OpTypePointer PhysicalStorageBuffer %buffer
%element = OpTypePointer PhysicalStorageBuffer %f32
%block = OpTypeStruct %address %address %f32 %u32
%zero = OpConstant %u32 0
%one = OpConstant %u32 1
%two = OpConstant %u32 2
%three = OpConstant %u32 3
OUTER_TYPES
%address_in = OpTypePointer BLOCK %address
%float_in = OpTypePointer BLOCK %f32
%uint_in = OpTypePointer BLOCK %u32
%main = OpFunction %void None %signature
%entry = OpLabel
FIND_BLOCK
%ids = OpLoad %v3 %gid
%i = OpCompositeExtract %u32 %ids 0
%n_at = OpAccessChain %uint_in %args %three
%n = OpLoad %u32 %n_at ALIGNED4
%inside = OpULessThan %bool %i %n
OpSelectionMerge %end None
OpBranchConditional %inside %work %end
%work = OpLabel
%x_at = OpAccessChain %address_in %args %zero
%x = OpLoad %address %x_at ALIGNED8
%y_at = OpAccessChain %address_in %args %one
%y = OpLoad %address %y_at ALIGNED8
%a_at = OpAccessChain %float_in %args %two
%a = OpLoad %f32 %a_at ALIGNED4
%xi_at = OpAccessChain %element %x %zero %i
%xi = OpLoad %f32 %xi_at Aligned 4
%yi_at = OpAccessChain %element %y %zero %i
%yi = OpLoad %f32 %yi_at Aligned 4
%product = OpFMul %f32 %a %xi
%sum = OpFAdd %f32 %product %yi
OpStore %yi_at %sum Aligned 4
OpBranch %end
%end = OpLabel
OpReturn
OpFunctionEnd
"""

_PUSHED = {
    "OUTER_DECORATIONS": "",
    "OUTER_TYPES": (
        "%pushed_pointer = OpTypePointer PushConstant %block\n%pushed = OpVariable %pushed_pointer PushConstant"
    ),
    "FIND_BLOCK": "%args = OpCopyObject %pushed_pointer %pushed",
    "BLOCK": "PushConstant",
    "ALIGNED4": "",
    "ALIGNED8": "",
}
_BY_ADDRESS = {
    "OUTER_DECORATIONS": "OpDecorate %outer Block\nOpMemberDecorate %outer 0 Offset 0",
    "OUTER_TYPES": (
        "%block_pointer = OpTypePointer PhysicalStorageBuffer %block\n%outer = OpTypeStruct %block_pointer\n"
        "%pushed_pointer = OpTypePointer PushConstant %outer\n%pushed = OpVariable %pushed_pointer PushConstant\n"
        "%inner_pointer = OpTypePointer PushConstant %block_pointer"
    ),
    "FIND_BLOCK": "%args_at = OpAccessChain %inner_pointer %pushed %zero\n%args = OpLoad %block_pointer %args_at",
    "BLOCK": "PhysicalStorageBuffer",
    "ALIGNED4": "Aligned 4",
    "ALIGNED8": "Aligned 8",
}


@functools.cache
def axpy(by_address: bool = False) -> bytes:
    """SPIR-V that adds a multiple of one float32 buffer to another."""
    text = _AXPY
    for name, value in (_BY_ADDRESS if by_address else _PUSHED).items():
        text = text.replace(name, value)
    return assemble(text)


def assemble(text: str) -> bytes:
    """SPIR-V of its assembly, valid for Vulkan 1.2."""
    need_assembler()
    with tempfile.TemporaryDirectory() as name:
        source, binary = Path(name) / "kernel.spvasm", Path(name) / "kernel.spv"
        source.write_text(text)
        subprocess.run(["spirv-as", "--target-env", "vulkan1.2", source, "-o", binary], check=True)
        subprocess.run(["spirv-val", "--target-env", "vulkan1.2", binary], check=True)
        return binary.read_bytes()


def described(name: str = "axpy", *, by_address: bool = False, **fields: Any) -> dict[str, Any]:
    """axpy as a module describes it; ``fields`` take the place of what is usual."""
    return {
        "name": name,
        "args": [
            {"kind": "buffer", "offset": 0, "access": "r"},
            {"kind": "buffer", "offset": 8, "access": "rw"},
            {"kind": "scalar", "dtype": "float32", "offset": 16},
            {"kind": "scalar", "dtype": "int32", "offset": 20},
        ],
        "block": "address" if by_address else "push",
        "block_bytes": 24,
        "launch": ["blockIdx.x", "threadIdx.x"],
        "workgroup": [THREADS, 1, 1],
        "shared_bytes": 0,
        "features": ["int64"],
        "subgroup": 0,
    } | fields


def module_bytes(*kernels: tuple[dict[str, Any], bytes]) -> bytes:
    """A module of kernels, each its description and its SPIR-V."""
    places, blob = [], b""
    for description, code in kernels:
        places.append({"offset": len(blob), "bytes": len(code)} | description)
        blob += code
    text = json.dumps({"kernels": places}).encode()
    head = b"DSPKVK01" + struct.pack("<Q", len(text)) + text
    return head + b"\0" * (-len(head) % 4) + blob


def load(*kernels: tuple[dict[str, Any], bytes]) -> Any:
    """The same as a module of TVM's."""
    import tvm_ffi

    return tvm_ffi.get_global_func("ffi.Module.load_from_bytes.vulkan")(module_bytes(*kernels))


def groups(size: int) -> int:
    """Workgroups for so many elements."""
    return -(-size // THREADS)
