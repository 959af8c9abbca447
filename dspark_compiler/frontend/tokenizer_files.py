"""The tokenizer and generation files of a folder, as an artifact carries them."""

import shutil
from pathlib import Path

from dspark_compiler.frontend.checkpoint import GENERATION_CONFIG, TOKENIZER_FILES, convert_tokenizer

# Tokenizers of older kinds, which transformers converts.
OLDER_TOKENIZERS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def write_tokenizer(folder: Path, directory: Path) -> list[str]:
    """Copies the files as they are, or converts a tokenizer of an older kind; returns their names."""
    written = []
    if (folder / TOKENIZER_FILES[0]).is_file():
        for file in TOKENIZER_FILES:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, directory / file)
                written.append(file)
    elif any((folder / file).is_file() for file in OLDER_TOKENIZERS):
        written = convert_tokenizer(directory, pretrained_model_name_or_path=str(folder))
    if (folder / GENERATION_CONFIG).is_file():
        shutil.copyfile(folder / GENERATION_CONFIG, directory / GENERATION_CONFIG)
        written.append(GENERATION_CONFIG)
    return written
