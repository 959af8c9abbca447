"""Functions that kernels call, in LLVM's language, and the options of ROCm's device libraries.

TVM links them into every module. Four things cannot be said in TIR: a barrier that also orders memory (TVM's own
waits for threads only, and code may be moved across it), exchange within a row of lanes without a trip through local
memory, a place that no instruction is moved across, and constants that the device libraries look up.
"""

from dspark_compiler.schedules.rocm.architectures import Architecture

BARRIER = "dspark_barrier"
XOR_LANES = (1, 2, 4)  # distances there is a function for

# Code object version 5, which ROCm 5.3 and later load; LLVM's own choice needs ROCm 6.3.
_OBJECT_VERSION = 500

# Controls of v_mov_b32_dpp (AMD's ISA documents, "Data Parallel Primitives"): within four lanes, lane i gets the value
# of the lane it names, two bits a lane; half a row mirrored, lane i gets the value of lane 7 - i.
_SWAP_1 = 0b10_11_00_01
_SWAP_2 = 0b01_00_11_10
_REVERSED = 0b00_01_10_11
_HALF_MIRROR = 0x141
# Lane i ^ 4 is 7 - i, mirrored again within its four.
_CONTROLS = {1: (_SWAP_1,), 2: (_SWAP_2,), 4: (_HALF_MIRROR, _REVERSED)}


def xor_function(distance: int) -> str:
    """Name of i32(i32): the value of the lane whose number differs in the bits of ``distance``."""
    return f"dspark_xor_{distance}"


def device_library(arch: Architecture) -> str:
    """The text of the module."""
    functions = "\n".join(_xor(distance) for distance in XOR_LANES)
    options = "\n".join(f"@__oclc_{name} = {_LINKAGE} addrspace(4) constant {value}" for name, value in _options(arch))
    return f"""\
target triple = "amdgcn-amd-amdhsa-hcc"
{options}
declare void @llvm.amdgcn.s.barrier()
declare i32 @llvm.amdgcn.update.dpp.i32(i32, i32, i32 immarg, i32 immarg, i32 immarg, i1 immarg)
define linkonce_odr hidden void @{BARRIER}() alwaysinline convergent nounwind {{
  fence syncscope("workgroup") release
  call void @llvm.amdgcn.s.barrier()
  fence syncscope("workgroup") acquire
  ret void
}}
{functions}
{_IN_ORDER}
{_ATOMICS}
!llvm.module.flags = !{{!0}}
!0 = !{{i32 1, !"amdhsa_code_object_version", i32 {_OBJECT_VERSION}}}
"""


# Named by schedules/simt/stream_linear.py.
_IN_ORDER = """\
declare void @llvm.amdgcn.sched.barrier(i32 immarg)
define linkonce_odr hidden void @dspark_in_order() alwaysinline convergent nounwind {
  call void @llvm.amdgcn.sched.barrier(i32 0)
  ret void
}"""
# What work groups of one launch tell each other: the names that schedules/simt knows them by.
_ATOMICS = """\
define linkonce_odr hidden i32 @dspark_atomic_load(ptr addrspace(1) %place) alwaysinline nounwind {
  %value = load atomic i32, ptr addrspace(1) %place syncscope("agent") monotonic, align 4
  ret i32 %value
}
define linkonce_odr hidden void @dspark_atomic_store(ptr addrspace(1) %place, i32 %value) alwaysinline nounwind {
  store atomic i32 %value, ptr addrspace(1) %place syncscope("agent") monotonic, align 4
  ret void
}
define linkonce_odr hidden i32 @dspark_atomic_add(ptr addrspace(1) %place, i32 %value) alwaysinline nounwind {
  %before = atomicrmw add ptr addrspace(1) %place, i32 %value syncscope("agent") monotonic
  ret i32 %before
}
define linkonce_odr hidden void @dspark_device_fence() alwaysinline nounwind {
  fence syncscope("agent") acq_rel
  ret void
}"""
_LINKAGE = "linkonce_odr hidden local_unnamed_addr"


def _options(arch: Architecture) -> list[tuple[str, str]]:
    """Exact functions for all numbers there are."""
    return [
        ("ISA_version", f"i32 {arch.isa_version}"),
        ("ABI_version", f"i32 {_OBJECT_VERSION}"),
        ("wavefrontsize64", f"i8 {int(arch.wave == 64)}"),
        ("correctly_rounded_sqrt32", "i8 1"),
        *((f"{name}_opt", "i8 0") for name in ("daz", "finite_only", "unsafe_math")),
    ]


def _xor(distance: int) -> str:
    steps, value = [], "%value"
    for number, control in enumerate(_CONTROLS[distance]):
        # All rows and banks of lanes take part, and no lane is read that does not.
        call = (
            f"call i32 @llvm.amdgcn.update.dpp.i32(i32 {value}, i32 {value}, i32 {control}, i32 15, i32 15, i1 false)"
        )
        steps.append(f"  %step{number} = {call}")
        value = f"%step{number}"
    lines = "\n".join(steps)
    return (
        f"define linkonce_odr hidden i32 @{xor_function(distance)}(i32 %value) alwaysinline convergent nounwind {{\n"
        f"{lines}\n  ret i32 {value}\n}}"
    )
