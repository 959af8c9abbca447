"""Text to ids and ids to text that can be shown while it grows."""

from collections.abc import Sequence

import tokenizers

from dspark_compiler.errors import ArtifactError

_REPLACEMENT = "\ufffd"  # what decoding makes of bytes that are no character (yet)
_UNFINISHED = 3  # bytes an unfinished character of UTF-8 can have; some decoders show each as a replacement
_MOST_HELD = 64  # tokens; past that, bytes that never become text are shown as they are
_CONTEXT = 4  # prompt tokens that tell whether the first new token starts a word


class Tokenizer:
    """The tokenizer of a ``tokenizer.json``.

    Raises:
        ArtifactError: the text is not one.
    """

    def __init__(self, text: str, where: str) -> None:
        try:
            # Of the library's ways to read one, only this raises something narrower than Exception.
            self._tokenizer = tokenizers.Tokenizer.from_buffer(text.encode())
        except ValueError as error:
            raise ArtifactError(f"{where}: not a tokenizer that this version reads: {error}") from error
        # Settings for training batches, which some checkpoints leave on.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; ``special`` adds what the model expects around a prompt, such as a beginning token."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


class TextStream:
    """Turns tokens that arrive one by one into text, whole characters only.

    A token's text depends on its neighbours: a character may be spread over several tokens, and some decoders drop
    the space of a first word. So a few tokens are decoded together, and what is new in their text is given out.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-_CONTEXT:])
        self._settled = len(self._ids)  # of these ids all text was shown
        # Characters of the ids' text; one that the prompt leaves unfinished is yet to be shown.
        self._shown = len(tokenizer.decode(self._ids).rstrip(_REPLACEMENT))

    def push(self, token: int) -> str:
        """The text this token completes; empty while a character is unfinished."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        held = self._held(text)
        new = text[self._shown : len(text) - held]
        self._shown += len(new)
        if new and not held:
            # What was shown just now is context enough for what follows.
            del self._ids[: self._settled]
            self._settled = len(self._ids)
            self._shown = len(self._tokenizer.decode(self._ids))
        return new

    def _held(self, text: str) -> int:
        """How many replacements at the end may yet become a character."""
        broken = len(text) - len(text.rstrip(_REPLACEMENT))
        pending = len(self._ids) - self._settled
        if pending <= _UNFINISHED:
            # Some decoders show a run of bytes as replacements altogether while its last character is unfinished, even
            # the characters before it.
            return broken
        return min(broken, _UNFINISHED) if len(self._ids) <= _MOST_HELD else 0

    def finish(self) -> str:
        """What is left; bytes that never became a character show as U+FFFD."""
        return self._tokenizer.decode(self._ids)[self._shown :]
