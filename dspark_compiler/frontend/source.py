"""Opens what the user named: a Hugging Face folder, a hub id, a ``.gguf`` file, an ``.onnx`` file or its folder."""

import re
from pathlib import Path

from dspark_compiler.errors import InputError
from dspark_compiler.frontend.checkpoint import Source
from dspark_compiler.frontend.folder import FolderSource, download
from dspark_compiler.frontend.gguf import GgufSource
from dspark_compiler.frontend.onnx.on_disk import ONNX_SUFFIX, onnx_file_of
from dspark_compiler.frontend.onnx.source import OnnxSource

__all__ = ["Source", "open_source"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_source(model: str) -> Source:
    """The source ``model`` names: what is on disk first, the hub if it looks like an id there (owner/name).

    Raises:
        InputError: nothing of that name, or something that is damaged or incomplete.
        UnsupportedModelError: an architecture that cannot be compiled.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        file = onnx_file_of(path)
        return FolderSource(path) if file is None else OnnxSource(file, name=path.resolve().name)
    if path.is_file():
        return OnnxSource(path) if path.suffix == ONNX_SUFFIX else GgufSource(path)
    if _HUB_ID.fullmatch(model) and path.suffix not in (".gguf", ONNX_SUFFIX):
        return FolderSource(download(model), name=model.rpartition("/")[2])
    raise InputError(
        f"{model}: no such file or folder; give a Hugging Face model folder, a hub id, a .gguf or an .onnx file"
    )
