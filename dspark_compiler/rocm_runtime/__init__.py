"""The ROCm runtime: C++ against TVM's headers and HIP's interface, and the library it becomes."""

from pathlib import Path

from dspark_compiler.native.library import NativeLibrary

library = NativeLibrary("rocm", Path(__file__).parent)
