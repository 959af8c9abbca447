"""Runs artifacts with numpy, tokenizers and tvm_ffi only."""
