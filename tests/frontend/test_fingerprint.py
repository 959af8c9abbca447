"""One tokenizer in several files has one fingerprint; another has another."""

import json
from pathlib import Path
from typing import Any

import pytest

from dspark_compiler.frontend.fingerprint import tokenizer_sha256
from dspark_compiler.frontend.source import open_source
from tests.tiny_models import TINY

CONTENT: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
    "normalizer": None,
}


def fingerprint(folder: Path, content: dict[str, Any] | None) -> str | None:
    TINY["llama"]().save_pretrained(folder)
    if content is not None:
        (folder / "tokenizer.json").write_text(json.dumps(content))
    return tokenizer_sha256(open_source(str(folder)))


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    assert fingerprint(tmp_path, None) is None


@pytest.mark.parametrize(
    "same",
    [
        CONTENT | {"normalizer": {"type": "NFC"}},
        CONTENT | {"model": CONTENT["model"] | {"merges": ["a b"], "vocab": {"ab": 2, "b": 1, "a": 0, "<s>": 3}}},
    ],
)
def test_the_same_tokenizer_in_another_file(tmp_path: Path, same: dict[str, Any]) -> None:
    assert fingerprint(tmp_path, same) == fingerprint(tmp_path, CONTENT) is not None


@pytest.mark.parametrize(
    "other",
    [
        CONTENT | {"added_tokens": []},
        CONTENT | {"model": CONTENT["model"] | {"vocab": {"a": 1, "b": 0, "ab": 2}}},
        CONTENT | {"model": CONTENT["model"] | {"merges": []}},
        CONTENT | {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["ab", -2.0], ["b", -2.0]]}},
    ],
)
def test_another_tokenizer(tmp_path: Path, other: dict[str, Any]) -> None:
    assert fingerprint(tmp_path, other) not in (None, fingerprint(tmp_path, CONTENT))
