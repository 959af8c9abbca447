"""Trains a KVzap surrogate for a model: read texts, watch the model repeat them, fit each layer's network."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dspark_compiler.errors import InputError
from dspark_compiler.frontend.checkpoint import Source
from dspark_compiler.frontend.seam import seam
from dspark_compiler.frontend.source import open_source
from dspark_compiler.models import family_of
from dspark_compiler.models.surrogate import Surrogate, apply
from dspark_compiler.training.documents import cut_documents, source_tokenizer
from dspark_compiler.training.fit import fit, quality
from dspark_compiler.training.reconstruction import REQUEST, reconstruct
from dspark_compiler.training.rows import RowStore
from dspark_compiler.training.sites import find_sites

Progress = Callable[[str, int, int], None]

_SHORTEST = 16  # tokens of a document
_HELD_OUT = 8  # every so many documents, one judges instead of teaching


@dataclass(frozen=True)
class TrainingOptions:
    """How a surrogate is made: ``documents`` of ``length`` tokens, ``steps`` of descent a layer.

    ``hidden`` units a layer's network has; 0 makes it linear, None takes an eighth of the model's hidden size.
    """

    documents: int = 40
    length: int = 1024
    hidden: int | None = None
    steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--documents", self.documents, 2),
            ("--length", self.length, _SHORTEST),
            ("--hidden", self.hidden or 0, 0),
            ("--steps", self.steps, 1),
            ("--seed", self.seed, 0),
        ):
            if value < least:
                raise InputError(f"{option} {value}: must be at least {least}")


def train(model: str, files: Sequence[Path], options: TrainingOptions, progress: Progress) -> Surrogate:
    """A surrogate for the model that ``model`` names, from the texts of ``files``.

    Raises:
        InputError: a model or file that cannot be read, a model without a tokenizer, or too little text.
        UnsupportedModelError: a model that cannot be compiled either.
    """
    source = open_source(model)
    generator = torch.Generator().manual_seed(options.seed)
    progress("read text", 0, 0)
    tokenizer = source_tokenizer(source)
    request = torch.tensor(tokenizer.encode(REQUEST, special=False), dtype=torch.int64)
    _check_length(source, options.length, len(request))
    documents = cut_documents(files, tokenizer, options.documents, options.length, generator)
    with tempfile.TemporaryDirectory() as directory:
        store = _watch(source, documents, request, Path(directory) / "rows", progress)
        hidden = source.info.hidden_size // 8 if options.hidden is None else options.hidden
        learning = options.length * (options.documents - max(1, options.documents // _HELD_OUT))
        layers, qualities = [], []
        progress("fit", 0, store.layers)
        for layer in range(store.layers):
            rows, judging = store.layer(layer).split(learning)
            affines = fit(rows, hidden, options.steps, generator)
            layers.append(affines)
            qualities.append(quality(apply(affines, judging.hidden), judging.target))
            progress("fit", layer + 1, store.layers)
    return Surrogate(
        model=source.name,
        hidden_size=source.info.hidden_size,
        kv_heads=store.kv_heads,
        layers=tuple(layers),
        training=asdict(options) | {"hidden": hidden, "data": [file.name for file in files]},
        correlation=tuple(found.correlation for found in qualities),
        r2=tuple(found.r2 for found in qualities),
    )


def _check_length(source: Source, length: int, request: int) -> None:
    most = (source.max_positions - request) // 2
    if length > most:
        raise InputError(
            f"--length {length}: {source.name} reads {source.max_positions} tokens, and has to see each document "
            f"twice; give at most {most}"
        )


def _watch(source: Source, documents: Sequence[Tensor], request: Tensor, file: Path, progress: Progress) -> RowStore:
    """The rows of all documents, one after the other; ``file`` will hold them."""
    progress("load model", 0, 0)
    model = source.load(torch.float32)
    length = len(documents[0])
    with seam(model, family_of(model.config.model_type)):
        sites = find_sites(model)
        store = RowStore(file, len(sites), len(documents) * length, source.info.hidden_size, sites[0].kv_heads)
        progress("watch the model", 0, len(documents))
        for index, document in enumerate(documents):
            reconstruct(model, sites, document, request, partial(store.put, index * length))
            progress("watch the model", index + 1, len(documents))
    return store
