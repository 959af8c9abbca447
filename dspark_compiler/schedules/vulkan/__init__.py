"""Kernel templates for Vulkan devices of any maker: TIR with bound threads."""
