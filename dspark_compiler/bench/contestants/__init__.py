"""The ways to run a model that are compared, one module each; each runs in a process of its own."""

from collections.abc import Callable

from dspark_compiler.bench.contestants.base import Contestant, Setup


def _compiled(setup: Setup) -> Contestant:
    from dspark_compiler.bench.contestants.compiled import Compiled

    return Compiled(setup)


def _no_heads(setup: Setup) -> Contestant:
    from dspark_compiler.bench.contestants.compiled import Compiled

    return Compiled(setup, heads=False)


def _eager(setup: Setup) -> Contestant:
    from dspark_compiler.bench.contestants.eager import Eager

    return Eager(setup)


def _torch_compile(setup: Setup) -> Contestant:
    from dspark_compiler.bench.contestants.torch_compile import TorchCompile

    return TorchCompile(setup)


def _onnxruntime(setup: Setup) -> Contestant:
    from dspark_compiler.bench.contestants.onnxruntime import OnnxRuntime

    return OnnxRuntime(setup)


__all__ = ["COMPILED", "CONTESTANTS", "NO_HEADS", "OPPONENTS", "SOURCE_OPPONENTS", "Contestant", "Setup"]

COMPILED, NO_HEADS = "compiled", "no-heads"

CONTESTANTS: dict[str, Callable[[Setup], Contestant]] = {
    COMPILED: _compiled,
    NO_HEADS: _no_heads,
    "eager": _eager,
    "torch-compile": _torch_compile,
    "onnxruntime": _onnxruntime,
}

OPPONENTS = tuple(name for name in CONTESTANTS if name != COMPILED)

# Those that need the source model, and with it the compile extra.
SOURCE_OPPONENTS = tuple(name for name in OPPONENTS if name != NO_HEADS)
