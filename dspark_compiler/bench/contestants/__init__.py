"""The ways to run a model that are compared, one module each; each runs in a process of its own."""

from collections.abc import Callable

from dspark_compiler.bench.contestants.base import Contestant, Setup


def _compiled(setup: Setup) -> Contestant:
    from dspark_compiler.bench.contestants.compiled import Compiled

    return Compiled(setup)


def _eager(setup: Setup) -> Contestant:
    from dspark_compiler.bench.contestants.eager import Eager

    return Eager(setup)


def _torch_compile(setup: Setup) -> Contestant:
    from dspark_compiler.bench.contestants.torch_compile import TorchCompile

    return TorchCompile(setup)


def _onnxruntime(setup: Setup) -> Contestant:
    from dspark_compiler.bench.contestants.onnxruntime import OnnxRuntime

    return OnnxRuntime(setup)


__all__ = ["COMPILED", "CONTESTANTS", "OPPONENTS", "Contestant", "Setup"]

COMPILED = "compiled"

CONTESTANTS: dict[str, Callable[[Setup], Contestant]] = {
    COMPILED: _compiled,
    "eager": _eager,
    "torch-compile": _torch_compile,
    "onnxruntime": _onnxruntime,
}

# Those that need the source model, and with it the compile extra.
OPPONENTS = tuple(name for name in CONTESTANTS if name != COMPILED)
