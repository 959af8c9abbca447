"""Needles asked of a compiled model."""

from dspark_compiler.compare.compiled import decode_first
from dspark_compiler.compare.needle import NeedleDocument, is_answered
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.tokenizer import Tokenizer


def answers(executor: Executor, tokenizer: Tokenizer, document: NeedleDocument) -> list[bool]:
    """Whether each question of a document, asked one after another in one sequence, gets its number.

    The model's own greedy tokens stay in the sequence, as in a conversation.
    """
    found = []
    pending = list(document.ids)  # tokens the model has yet to read
    length = 0
    for question in document.questions:
        pending += question.ids
        logits = executor.prefill(0, pending, length, length)
        length += len(pending)
        tokens: list[int] = []
        verdict = None
        while verdict is None:
            tokens.append(int(logits.argmax()))
            verdict = is_answered(tokenizer.decode(tokens), question.answer)
            if verdict is None and len(question.ids) + len(tokens) == question.room:
                verdict = False
            if verdict is None:
                logits = decode_first(executor, tokens[-1], length)
                length += 1
        found.append(verdict)
        pending = [tokens[-1]]
    return found
