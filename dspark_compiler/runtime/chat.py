"""Chat templates: a conversation becomes the prompt its model was trained on."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dspark_compiler.errors import ArtifactError, InputError

Message = Mapping[str, Any]


class TextFiles(Protocol):
    """Where a model's text files are: an artifact, or a folder."""

    @property
    def path(self) -> Path:
        """The folder, for messages."""

    def read_text(self, name: str) -> str | None:
        """The text of a file, None if there is no such file."""


_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's words for training; for a prompt it is only its content."""

    tags = {"generation"}  # noqa: RUF012  (as the base class types it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template with the special tokens it may name.

    Templates come with models from anywhere, so they run in a sandbox.

    Raises:
        ArtifactError: ``source`` is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ArtifactError(f"chat template, line {error.lineno}: {error.message}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for a conversation, up to where the assistant's answer begins.

        Raises:
            InputError: the template refuses these messages; carries its reason.
        """
        try:
            return self._template.render(
                messages=list(messages), tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InputError(f"the chat template refuses these messages: {error}") from error


def load_chat_template(artifact: TextFiles) -> ChatTemplate | None:
    """The template of ``chat_template.jinja`` or else of ``tokenizer_config.json``; None if there is none.

    Raises:
        ArtifactError: it is not valid.
    """
    config = read_json(artifact, "tokenizer_config.json")
    source = artifact.read_text("chat_template.jinja")
    if source is None:
        source = _configured_template(config.get("chat_template"))
    return None if source is None else ChatTemplate(source, _special_tokens(config))


def read_json(artifact: TextFiles, name: str) -> dict[str, Any]:
    """The object in a JSON file of the artifact; empty if it has no such file.

    Raises:
        ArtifactError: the file holds something else.
    """
    text = artifact.read_text(name)
    if text is None:
        return {}
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{artifact.path / name}: not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{artifact.path / name}: not a JSON object")
    return data


def _configured_template(value: object) -> str | None:
    """The config's template is a string, or several named ones of which ``default`` is for plain chat."""
    if isinstance(value, list):
        named = {item["name"]: item["template"] for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """A special token is written as a string, or as an object with its content."""
    values = {name: config.get(name) for name in _SPECIAL_TOKENS}
    plain = {name: value["content"] if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in plain.items() if isinstance(value, str)}


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes <, > and & for HTML, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
