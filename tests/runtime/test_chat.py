"""Chat templates: as transformers renders them, in a sandbox, from wherever a checkpoint keeps them."""

import datetime
import json
from pathlib import Path

import pytest

from dspark_compiler.artifact import Artifact
from dspark_compiler.errors import ArtifactError, InputError
from dspark_compiler.runtime.chat import ChatTemplate, load_chat_template
from tests.runtime import toy

MESSAGES = [{"role": "system", "content": "Be <brief> & é"}, {"role": "user", "content": "Hi"}]


def artifact_with(**files: str) -> Artifact:
    """An artifact in name only: text files, no checks."""
    return _Files({name.replace("__", "."): text for name, text in files.items()})


class _Files(Artifact):
    def __init__(self, files: dict[str, str]) -> None:
        super().__init__(Path("a.dspark"), toy.manifest())
        object.__setattr__(self, "texts", files)

    def read_text(self, name: str) -> str | None:
        return self.texts.get(name)


def render(source: str, **special: str) -> str:
    return ChatTemplate(source, special).render(MESSAGES)


def test_special_tokens_prompt_and_whitespace_control() -> None:
    source = "{{ bos_token }}\n    {% for m in messages %}\n{{ m['role'] }}:{{ m.content }}\n    {% endfor %}\n"
    source += "{% if add_generation_prompt %}assistant:{% endif %}"
    assert render(source, bos_token="<s>") == "<s>\nsystem:Be <brief> & é\nuser:Hi\nassistant:"


def test_agrees_with_transformers() -> None:
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (
        "{%- for m in messages %}{%- if loop.index0 == 1 %}{% continue %}{% endif %}"
        "{{ m | tojson }}{{ m.content | tojson(indent=2) }}{%- endfor %}\n"
        "{% generation %}\n  words {{ messages | length }}\n{% endgeneration %}\n"
        "{% if tools is not none %}tools{% endif %}{% if add_generation_prompt %}>{% endif %}"
    )
    expected, _ = render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=True)
    assert render(source) == expected[0]


def test_dates() -> None:
    assert render("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[7].content.strip() }}",
        "{{ messages + 3 }}",
        "{{ 1 // 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_that_refuses_is_an_input_error(source: str) -> None:
    with pytest.raises(InputError, match="the chat template refuses these messages: "):
        render(source)


def test_the_templates_own_reason_is_passed_on() -> None:
    with pytest.raises(InputError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_a_broken_template_is_an_artifact_error() -> None:
    with pytest.raises(ArtifactError, match="chat template, line 2"):
        render("a\n{% if %}")


def test_where_templates_are_found() -> None:
    def config(template: object) -> str:
        return json.dumps({"chat_template": template, "eos_token": {"content": "</s>"}, "bos_token": None})

    def text(artifact: Artifact) -> str:
        template = load_chat_template(artifact)
        assert template is not None
        return template.render([])

    assert text(artifact_with(chat_template__jinja="file", tokenizer_config__json=config("config"))) == "file"
    assert text(artifact_with(tokenizer_config__json=config("config{{ eos_token }}"))) == "config</s>"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert text(artifact_with(tokenizer_config__json=config(named))) == "yes"
    assert load_chat_template(artifact_with(tokenizer_config__json=config(named[:1]))) is None
    assert load_chat_template(artifact_with(tokenizer_config__json="{}")) is None
    assert load_chat_template(artifact_with()) is None


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_broken_tokenizer_config_is_an_artifact_error(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json: not"):
        load_chat_template(artifact_with(tokenizer_config__json=text))
