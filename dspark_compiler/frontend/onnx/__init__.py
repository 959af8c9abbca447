"""ONNX: a decoder's graph is reduced to token ids and positions in, logits out, and run by torch operators."""
