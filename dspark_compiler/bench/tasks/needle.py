"""Retrieval from long documents, by kind and depth of what is hidden (see compare/needle.py)."""

from collections import defaultdict
from typing import Any

from dspark_compiler.bench.tasks.base import Context
from dspark_compiler.bench.tasks.data import read_all
from dspark_compiler.compare.needle import DEPTHS, KINDS, NeedleMaker, accuracy
from dspark_compiler.compare.prompts import long_text
from dspark_compiler.compare.retrieval import answers

_DOCUMENTS = 15  # of which each kind has one a depth


def evaluate(context: Context) -> dict[str, Any]:
    """Asks for the numbers hidden in documents as long as the artifact, or ``--length``, allows.

    ``--limit`` counts documents; kinds and depths take turns.

    Raises:
        InputError: no tokenizer, no text, or documents too short for needles.
    """
    tokenizer = context.text_tokenizer
    text = "\n\n".join(read_all(context.data)) or long_text()
    maker = NeedleMaker(tokenizer, text, context.span)
    turns = [(kind, depth) for depth in DEPTHS for kind in KINDS]
    documents = [maker.document(*turns[i % len(turns)], i // len(turns)) for i in range(context.limit or _DOCUMENTS)]
    executor = context.executor
    context.progress("needles", 0, len(documents))
    by_kind, by_depth = defaultdict(list), defaultdict(list)
    for done, document in enumerate(documents, 1):
        for question, found in zip(document.questions, answers(executor, tokenizer, document), strict=True):
            by_kind[document.kind].append(found)
            by_depth[question.depth].append(found)
        context.progress("needles", done, len(documents))
    every = [found for kind in by_kind.values() for found in kind]
    return {
        "documents": len(documents),
        "document_tokens": max(len(document.ids) for document in documents),
        "questions": len(every),
        "accuracy": accuracy(every),
        **{f"accuracy_{kind}": accuracy(found) for kind, found in by_kind.items()},
        **{f"accuracy_at_{depth}": accuracy(by_depth[depth]) for depth in sorted(by_depth)},
    }
