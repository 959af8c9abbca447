"""One sequence while it is generated: its tokens, its text, and when it ends."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.runtime.sampling import SamplingParams, make_generator, next_token
from dspark_compiler.runtime.stop import StopFilter
from dspark_compiler.runtime.tokenizer import TextStream, Tokenizer

# eos: an end-of-sequence token (the last of ``tokens``); stop: a stop string (cut off the text);
# length: max_new_tokens; context: the artifact's max_seq_len.
FinishReason = Literal["eos", "stop", "length", "context"]


@dataclass(frozen=True)
class Completion:
    """What became of a prompt.

    ``ttft_ms`` is the time to the first token, ``tpot_ms`` the mean time between tokens after it (None for one
    token); ``rounds`` counts model steps after the prefill, of one token or of several, ``accepted_length`` is the mean
    of tokens that one of them brought (None without heads, or without any), ``kv_slots`` the cache slots in use at the
    end. Without a tokenizer ``text`` is empty.
    """

    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    ttft_ms: float
    tpot_ms: float | None
    rounds: int
    accepted_length: float | None
    kv_slots: int


class SequenceState:
    """What a decoding strategy reads and advances.

    Attributes:
        row: index of the sequence in the executor's batch.
        prompt: its token ids.
        tokens: those generated so far; the last one is not in the cache yet.
        length: its tokens that are in the cache, or were.
        position: logical position of the next token fed to the model.
        rounds: model steps after the prefill.
    """

    def __init__(
        self,
        row: int,
        prompt: list[int],
        params: SamplingParams,
        *,
        room: int,
        eos_ids: frozenset[int],
        tokenizer: Tokenizer | None,
        used_slots: Callable[[int], int] = lambda length: length,
        speculative: bool = False,
    ) -> None:
        """``room`` is the number of tokens the context leaves for the answer, at least 1.

        ``used_slots`` says how many cache slots so many tokens take, ``speculative`` whether drafts are at hand.
        """
        self.row = row
        self.prompt = prompt
        self.params = params
        self.tokens: list[int] = []
        self.length = 0
        self.position = 0
        self.rounds = 0
        self.finish_reason: FinishReason | None = None
        self._room = room
        self._speculative = speculative
        self._used_slots = used_slots
        self._eos_ids = frozenset() if params.ignore_eos else eos_ids
        self._generator = make_generator(params.seed)
        self._stream = None if tokenizer is None else TextStream(tokenizer, prompt)
        self._stop = StopFilter(params.stop)
        self._text: list[str] = []
        self._unread = 0
        self._started = self._first = self._last = time.perf_counter()

    def draw(self, logits: NDArray[np.float32]) -> int:
        """The next token, from logits [V]."""
        return next_token(logits, self.params, [*self.prompt, *self.tokens], self._generator)

    @property
    def remaining(self) -> int:
        """Tokens it may still take."""
        return min(self.params.max_new_tokens, self._room) - len(self.tokens)

    def numbers(self, count: int) -> NDArray[np.float32]:
        """The next ``count`` numbers of the sequence's random stream, in [0, 1); zeros if it is greedy."""
        if self.params.temperature == 0:
            return np.zeros(count, np.float32)
        return self._generator.random(count, np.float32)

    def take(self, token: int) -> None:
        """Adds a confirmed token, and finishes the sequence if it was the last one."""
        assert self.finish_reason is None, "the sequence has ended"
        self._last = time.perf_counter()
        if not self.tokens:
            self._first = self._last
        self.tokens.append(token)
        if token in self._eos_ids:
            self._finish("eos")
            return
        if self._stream is not None:
            self._text.append(self._stop.push(self._stream.push(token)))
        if self._stop.stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.params.max_new_tokens:
            self._finish("length")
        elif len(self.tokens) == self._room:
            self._finish("context")

    def _finish(self, reason: FinishReason) -> None:
        if self._stream is not None:
            self._text += [self._stop.push(self._stream.finish()), self._stop.finish()]
        self.finish_reason = "stop" if self._stop.stopped else reason

    def read_text(self) -> str:
        """The text that has come since the last call."""
        text = "".join(self._text[self._unread :])
        self._unread = len(self._text)
        return text

    def completion(self) -> Completion:
        """The result, once finished."""
        assert self.finish_reason is not None, "the sequence has not ended"
        steps = len(self.tokens) - 1
        return Completion(
            prompt_tokens=tuple(self.prompt),
            tokens=tuple(self.tokens),
            text="".join(self._text),
            finish_reason=self.finish_reason,
            ttft_ms=(self._first - self._started) * 1e3,
            tpot_ms=(self._last - self._first) * 1e3 / steps if steps else None,
            rounds=self.rounds,
            accepted_length=steps / self.rounds if self._speculative and self.rounds else None,
            kv_slots=self._used_slots(self.length),
        )
