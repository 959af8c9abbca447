"""Kernels for Vulkan devices that use what only some of them have."""
