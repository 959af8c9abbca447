"""Compile causal language models to artifacts that run fast without torch.

Importing the package is light; each name brings what it needs when it is first used.
"""

from os import PathLike
from typing import TYPE_CHECKING, Any

from dspark_compiler.config import CompileConfig, Target

if TYPE_CHECKING:
    from dspark_compiler.artifact import Artifact
    from dspark_compiler.runtime.engine import Engine, load
    from dspark_compiler.runtime.sampling import SamplingParams

    __version__: str

__all__ = ["Artifact", "CompileConfig", "Engine", "SamplingParams", "__version__", "compile", "load"]

_HOMES = {
    "Artifact": "dspark_compiler.artifact",
    "Engine": "dspark_compiler.runtime.engine",
    "SamplingParams": "dspark_compiler.runtime.sampling",
    "load": "dspark_compiler.runtime.engine",
}


def compile(
    model: str | PathLike[str],
    target: Target = "cpu",
    output: str | PathLike[str] | None = None,
    **options: Any,
) -> "Artifact":
    """Compiles a model (Hugging Face folder or hub id, or GGUF file) to an artifact; needs the ``compile`` extra.

    ``options`` are the other fields of CompileConfig; ``output`` defaults to NAME-TARGET.dspark.

    Raises:
        DSparkError: the model, an option or the environment does not allow it; the class says which.
    """
    from pathlib import Path

    from dspark_compiler.errors import BackendUnavailableError

    try:
        from dspark_compiler.driver import compile_model
    except ModuleNotFoundError as error:
        hint = "pip install 'dspark-compile[compile]' brings it"
        raise BackendUnavailableError(f"compiling needs the package {error.name}; {hint}") from error
    config = CompileConfig(target=target, output=None if output is None else Path(output), **options)
    return compile_model(str(model), config)


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("dspark-compile")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
