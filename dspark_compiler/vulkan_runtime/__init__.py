"""The Vulkan runtime: C++ against TVM's and Vulkan's headers, and the library it becomes."""

from pathlib import Path

from dspark_compiler.native.library import NativeLibrary, SystemHeader

_HEADERS = SystemHeader("vulkan/vulkan_core.h", "VULKAN_SDK", "Vulkan's headers (Debian: libvulkan-dev)")

library = NativeLibrary("vulkan", Path(__file__).parent, _HEADERS)
