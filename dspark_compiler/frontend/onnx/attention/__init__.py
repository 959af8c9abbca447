"""Attention, however a file writes it, becomes one ``dspark::Attention`` a layer: rope applied, no past, no mask."""

from dspark_compiler.frontend.onnx.attention.canonicalize import canonicalize_attention

__all__ = ["canonicalize_attention"]
