"""The Vulkan runtime: C++ against TVM's and Vulkan's headers, and the library it becomes."""
