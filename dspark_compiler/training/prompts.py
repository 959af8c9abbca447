"""Prompts from files: whatever names a data set gives its questions, each becomes a conversation of one user turn."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark_compiler.errors import InputError
from dspark_compiler.runtime.chat import ChatTemplate, Message
from dspark_compiler.runtime.tokenizer import Tokenizer

_FIELDS = ("messages", "prompt", "instruction", "question", "turns", "text")


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with the user's words, and where it was read: ``where`` is "FILE: line N"."""

    messages: list[Message]
    file: Path
    where: str


def read_prompts(files: Sequence[Path], option: str = "--data") -> list[Prompt]:
    """The prompts of ``.jsonl`` files, and of ``.json`` files that hold a list, in order.

    An item is an object with "messages", "prompt", "instruction" (and "input"), "question", "turns" (of which the first
    counts) or "text"; the first of these that it has is taken. ``option`` is who gave the files, for messages.

    Raises:
        InputError: a file that cannot be read or holds no prompt, a line that is not as it should be.
    """
    try:
        return [prompt for file in files for prompt in _read(file)]
    except InputError as error:
        raise InputError(f"{option} {error}") from None


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, template: ChatTemplate | None, context: int
) -> list[list[int]]:
    """Ids of each prompt, by the model's chat template or, without one, of the plain text of its messages.

    Raises:
        InputError: an empty prompt, or one that leaves no room within the ``context`` tokens the model reads.
    """
    encoded = []
    for prompt in prompts:
        if template is None:
            ids = tokenizer.encode("\n".join(str(message["content"]) for message in prompt.messages))
        else:
            # The template writes the special tokens itself.
            ids = tokenizer.encode(template.render(prompt.messages), special=False)
        if len(ids) >= context:
            raise InputError(
                f"--data {prompt.where}: a prompt of {len(ids)} tokens, and the model reads {context}; shorten it, or "
                "take it out"
            )
        if not ids:
            raise InputError(f"--data {prompt.where}: an empty prompt; take it out")
        encoded.append(ids)
    return encoded


def _read(file: Path) -> list[Prompt]:
    try:
        content = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text (byte {error.start}); convert the file") from None
    items = _items_of_list(file, content) if file.suffix == ".json" else _items_of_lines(file, content)
    prompts = [Prompt(_messages(item, where), file, where) for item, where in items]
    if not prompts:
        raise InputError(f"{file}: holds no prompts")
    return prompts


def _items_of_lines(file: Path, content: str) -> Iterator[tuple[Any, str]]:
    # Not splitlines: JSON strings may hold other line separators as they are.
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            where = f"{file}: line {number}"
            try:
                yield json.loads(line), where
            except ValueError as error:
                raise InputError(f"{where}: not valid JSON ({error})") from None


def _items_of_list(file: Path, content: str) -> Iterator[tuple[Any, str]]:
    try:
        data = json.loads(content)
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(data, list):
        raise InputError(f"{file}: holds no list; give a list of objects, or .jsonl with an object a line")
    for number, item in enumerate(data, 1):
        yield item, f"{file}: item {number}"


def _messages(item: Any, where: str) -> list[Message]:
    found = next((name for name in _FIELDS if isinstance(item, dict) and item.get(name)), None)
    if found is None:
        raise InputError(f"{where}: has none of {', '.join(_FIELDS)}; each item must be an object with one")
    value = item[found]
    if found == "messages":
        return _conversation(value, where)
    if found == "turns":
        value = value[0] if isinstance(value, list) else value
    if found == "instruction" and item.get("input"):
        value = f"{value}\n\n{item['input']}"
    if not isinstance(value, str):
        raise InputError(f'{where}: "{found}" is not text')
    return [{"role": "user", "content": value}]


def _conversation(value: Any, where: str) -> list[Message]:
    """The messages up to the user's last words: what came after them is for the model to say."""
    if not isinstance(value, list) or not all(_is_message(message) for message in value):
        raise InputError(f'{where}: "messages" must be a list of objects with "role" and "content"')
    users = [index for index, message in enumerate(value) if message["role"] == "user"]
    if not users:
        raise InputError(f'{where}: "messages" has none of the user')
    return value[: users[-1] + 1]


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(name), str) for name in ("role", "content"))
