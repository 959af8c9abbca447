"""Tells one tokenizer from another, whatever files it came in."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from dspark_compiler.frontend.checkpoint import TOKENIZER_FILES, Source


def tokenizer_sha256(source: Source) -> str | None:
    """SHA-256 of what ids stand for and how they are merged, in hexadecimal; None without a tokenizer.

    Not of tokenizer.json itself: a GGUF file and a folder of one model give files that differ in what does not matter.
    """
    name = TOKENIZER_FILES[0]
    with tempfile.TemporaryDirectory() as directory:
        if name not in source.write_tokenizer(Path(directory)):
            return None
        content = json.loads((Path(directory) / name).read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(_canonical(content), sort_keys=True).encode()).hexdigest()


def _canonical(content: dict[str, Any]) -> dict[str, Any]:
    """Ids by token, and merges in one of the two ways they are written."""
    model = content["model"]
    vocab = model["vocab"]
    # Unigram models list [token, score] by id.
    ids = dict(vocab) if isinstance(vocab, dict) else {token: index for index, (token, _) in enumerate(vocab)}
    ids |= {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", ())]
    return {"ids": ids, "merges": merges}
