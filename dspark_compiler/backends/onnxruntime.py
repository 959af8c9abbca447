"""The onnxruntime target: nothing is compiled, and any machine with ONNX Runtime can run it."""

import importlib.util

from dspark_compiler.artifact import TargetInfo


class OnnxRuntimeTarget:
    """What an artifact says of the machines that run it."""

    spec = TargetInfo("onnxruntime", "any", "any")

    def runs_here(self) -> bool:
        """Whether ONNX Runtime is installed."""
        return importlib.util.find_spec("onnxruntime") is not None
