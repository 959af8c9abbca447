"""Published drafters become decode heads of a model, after all that could be compared has been."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dspark_compiler.errors import InputError
from dspark_compiler.frontend.checkpoint import Source
from dspark_compiler.frontend.fingerprint import target_identity
from dspark_compiler.frontend.folder import download
from dspark_compiler.models.drafters.checkpoint import check_fits
from dspark_compiler.models.drafters.deepspec import SHARED, read_deepspec
from dspark_compiler.models.drafters.heads import Heads


def find_checkpoint(source: str) -> Path:
    """The folder of a checkpoint: one on disk, else that of a hub id.

    Raises:
        InputError: nothing of that name.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{source}: is a file; give the folder of a DeepSpec checkpoint")
    return download(source)


def import_heads(folder: Path, source: Source | None) -> Heads:
    """The heads of a DeepSpec checkpoint, made for ``source``; None compares nothing.

    Raises:
        InputError: a checkpoint that cannot be read, or one of another model.
    """
    checkpoint = read_deepspec(folder)
    heads = checkpoint.heads
    if source is None:
        return heads
    heads = replace(heads, target=replace(heads.target, name="another model"))
    check_fits(heads, str(folder), source.info, None)
    _check_shared(folder, checkpoint.shared, source)
    return replace(heads, target=target_identity(source))


def _check_shared(folder: Path, shared: Mapping[str, Tensor], source: Source) -> None:
    """The compiled drafter takes the target's embedding and head, so the drafter must have been trained with those."""
    if not shared:
        return
    model = source.load(torch.bfloat16)
    own = {
        "embed_tokens.weight": model.get_input_embeddings().weight,
        "lm_head.weight": model.get_output_embeddings().weight,
    }
    for name, tensor in shared.items():
        differs = (tensor.bfloat16() != own[name].bfloat16()).any(dim=-1)
        if bool(differs.any()):
            row = int(differs.nonzero()[0])
            raise InputError(
                f"{folder}: its {SHARED[name]} ({name}) is not that of {source.name}: {int(differs.sum())} rows "
                f"differ, the first that of token {row}; give the model the drafter was trained with, unquantized"
            )
