"""Stand-ins for an executor whose answers are known, on bytes as tokens."""

import re
from collections.abc import Sequence

import numpy as np

from tests.runtime import toy


class Sequential:
    """One sequence without a cache: subclasses say what follows the tokens read so far."""

    batch = 1
    verify_widths = ()

    def __init__(self) -> None:
        self.seen: list[int] = []

    def following(self) -> int:
        raise AssertionError("a subclass says it")

    def prefill(self, sequence: int, tokens: Sequence[int], start: int, length: int) -> np.ndarray:
        self.seen = self.seen[:0] if length == 0 else self.seen
        assert (sequence, start, length) == (0, len(self.seen), len(self.seen))
        self.seen += tokens
        return self._logits()

    def decode(self, tokens: np.ndarray, positions: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
        self.seen = self.seen[:0] if lengths[0] == 0 else self.seen
        assert positions[0] == lengths[0] == len(self.seen)
        self.seen.append(int(tokens[0]))
        return self._logits()[None]

    def _logits(self) -> np.ndarray:
        logits = np.zeros(toy.V, np.float32)
        logits[self.following()] = 1
        return logits


class Reader(Sequential):
    """Answers every question about a needle among the newest ``memory`` tokens; says 0 where it finds none."""

    def __init__(self, memory: int = 1 << 30) -> None:
        super().__init__()
        self.memory = memory

    def following(self) -> int:
        text = bytes(token for token in self.seen if token < 256).decode()
        question = re.search(r"Answer: The special magic number for (\w+) is( ?\d*)$", text)
        assert question is not None, f"not a question: {text[-100:]!r}"
        found = re.search(rf"number for {question[1]} is (\d+)\.", text[-self.memory :])
        answer = f" {found[1]}" if found else " " + "0" * 9
        return ord(answer[len(question[2])])


class Chain(Sequential):
    """A token's successor depends on that token alone."""

    def __init__(self, successors: str) -> None:
        super().__init__()
        self.successors = dict(zip(successors.encode(), successors[1:].encode(), strict=False))

    def following(self) -> int:
        return self.successors.get(self.seen[-1], 0)
