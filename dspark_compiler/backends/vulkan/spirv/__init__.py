"""SPIR-V modules as such: numbers, types, constants, blocks. Nothing here knows TVM."""
