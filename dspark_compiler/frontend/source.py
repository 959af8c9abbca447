"""Opens what the user named: a Hugging Face folder, a hub id or a ``.gguf`` file."""

import re
from pathlib import Path

from dspark_compiler.errors import InputError
from dspark_compiler.frontend.checkpoint import Source
from dspark_compiler.frontend.folder import FolderSource, download
from dspark_compiler.frontend.gguf import GgufSource

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
        return FolderSource(path)
    if path.is_file():
        return GgufSource(path)
    if _HUB_ID.fullmatch(model) and path.suffix != ".gguf":
        return FolderSource(download(model), name=model.rpartition("/")[2])
    raise InputError(f"{model}: no such file or folder; give a Hugging Face model folder, a hub id or a .gguf file")
