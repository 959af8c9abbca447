"""A program's entry points as ONNX models over one set of weights."""
