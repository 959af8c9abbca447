"""Which file of what the user named is the ONNX model."""

from pathlib import Path

from dspark_compiler.errors import InputError

ONNX_SUFFIX = ".onnx"
_WEIGHTS = "*.safetensors"


def onnx_file_of(folder: Path) -> Path | None:
    """The one ``.onnx`` file of a folder without weights of another kind; None where there is none.

    Raises:
        InputError: there are several.
    """
    files = sorted(folder.glob(f"*{ONNX_SUFFIX}"))
    if not files or any(folder.glob(_WEIGHTS)):
        return None
    if len(files) > 1:
        names = " and ".join(file.name for file in files[:2]) if len(files) == 2 else ", ".join(f.name for f in files)
        raise InputError(f"{folder}: holds several models, {names}; name the file to compile")
    return files[0]
