"""Last words of passages, as in LAMBADA (arXiv 1606.06031): the model has to keep the whole passage in mind."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspark_compiler.bench.tasks.base import Context
from dspark_compiler.bench.tasks.data import read_all
from dspark_compiler.compare.compiled import compiled_logits
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.tokenizer import Tokenizer

_LAST_WORD = re.compile(r"(.*\S)(\s+\S+)", re.DOTALL)
_BETWEEN = "\n\n"


@dataclass(frozen=True)
class _Passage:
    """Token ids without special tokens; the last ``word`` of them are the last word's."""

    ids: list[int]
    word: int


@dataclass(frozen=True)
class _Document:
    """Token ids, and the range [begin, end) of each last word in them."""

    ids: list[int]
    words: list[tuple[int, int]]


def evaluate(context: Context) -> dict[str, Any]:
    """The fraction of last words whose tokens are all greedy ones, given the true passage before them.

    Raises:
        InputError: no data, a passage of less than two words, or no tokenizer.
    """
    passages, beginning = _passages(context), _beginning(context.text_tokenizer)
    alone = [document for passage in passages for document in _documents([passage], beginning, [], context.span)]
    return {"passages": len(passages), "accuracy": _accuracy(context, "passages", alone)}


def evaluate_stream(context: Context) -> dict[str, Any]:
    """The same of passages read one after another, a blank line between, as documents as long as the artifact holds.

    Each word is told in a long context, of which only the last passage helps: a cache that evicts has to keep it.

    Raises:
        InputError: as ``evaluate``.
    """
    passages, tokenizer = _passages(context), context.text_tokenizer
    between = tokenizer.encode(_BETWEEN, special=False)
    streams = _documents(passages, _beginning(tokenizer), between, context.span)
    return {
        "passages": len(passages),
        "streams": len(streams),
        "longest_stream": max(len(stream.ids) for stream in streams),
        "accuracy": _accuracy(context, "streams", streams),
    }


def _passages(context: Context) -> list[_Passage]:
    if not context.data:
        raise InputError(
            'lambada has no built-in passages: give --data FILE.jsonl with a "text" a line, its last word asked'
        )
    texts = read_all(context.data, by_line=True)
    return [_passage(context.text_tokenizer, text, number) for number, text in enumerate(texts, 1)][: context.limit]


def _passage(tokenizer: Tokenizer, text: str, number: int) -> _Passage:
    parts = _LAST_WORD.fullmatch(text.strip())
    if parts is None:
        raise InputError(f"--data: passage {number} is a single word; there must be something before the last word")
    before, word = parts.groups()
    ids = tokenizer.encode(before + word, special=False)
    shared = tokenizer.encode(before, special=False)
    if ids[: len(shared)] != shared:
        # A tokenizer that merges across the boundary: the word is asked as it is spelled on its own.
        ids = shared + tokenizer.encode(word, special=False)
    return _Passage(ids, len(ids) - len(shared))


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """The special tokens the model expects before a text."""
    plain, whole = tokenizer.encode("a", special=False), tokenizer.encode("a")
    places = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
    return whole[: places[0]] if places else []


def _documents(
    passages: Sequence[_Passage], beginning: Sequence[int], between: Sequence[int], longest: int
) -> list[_Document]:
    """Passages packed into documents; of one that is too long by itself, the beginning goes."""
    found: list[_Document] = []
    for passage in passages:
        ids = passage.ids[-(longest - len(beginning)) :]
        if not found or len(found[-1].ids) + len(between) + len(ids) > longest:
            found.append(_Document(list(beginning), []))
        else:
            found[-1].ids.extend(between)
        found[-1].ids.extend(ids)
        end = len(found[-1].ids)
        found[-1].words.append((end - passage.word, end))
    return found


def _accuracy(context: Context, name: str, documents: Sequence[_Document]) -> float:
    executor = context.executor
    right = []
    context.progress(name, 0, len(documents))
    for done, document in enumerate(documents, 1):
        right += _told(executor, document)
        context.progress(name, done, len(documents))
    return sum(right) / len(right)


def _told(executor: Executor, document: _Document) -> list[bool]:
    chosen = [chunk.argmax(axis=1) for chunk in compiled_logits(executor, document.ids, reading=True)]
    following = np.concatenate(chosen)  # [len(ids)]: entry i is the model's choice for place i + 1
    ids = np.asarray(document.ids)
    return [bool((following[begin - 1 : end - 1] == ids[begin:end]).all()) for begin, end in document.words]
