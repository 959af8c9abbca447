"""Prompts from files of all the kinds that are read, and clear words about those that are not."""

import json
from pathlib import Path

import pytest

from dspark_compiler.errors import InputError
from dspark_compiler.runtime.chat import ChatTemplate
from dspark_compiler.runtime.tokenizer import Tokenizer
from dspark_compiler.training.prompts import encode_prompts, read_prompts
from tests.runtime import toy


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


CHAT = [{"role": "system", "content": "be brief"}, *user("hi"), {"role": "assistant", "content": "hello"}]


@pytest.mark.parametrize(
    ("item", "messages"),
    [
        ({"messages": CHAT, "text": "no"}, CHAT[:2]),
        ({"prompt": "p", "text": "no"}, user("p")),
        ({"instruction": "do", "input": ""}, user("do")),
        ({"instruction": "do", "input": "this"}, user("do\n\nthis")),
        ({"question": "q", "answer": "a"}, user("q")),
        ({"turns": ["first", "second"]}, user("first")),
        ({"text": "t"}, user("t")),
        ({"prompt": "", "text": "t"}, user("t")),
        ({"text": "one\u2028line"}, user("one\u2028line")),
    ],
)
def test_kinds(tmp_path: Path, item: dict[str, object], messages: list[dict[str, str]]) -> None:
    lines, listed = tmp_path / "p.jsonl", tmp_path / "p.json"
    lines.write_text(f"\n{json.dumps(item, ensure_ascii=False)}\n\n", encoding="utf-8")
    listed.write_text(json.dumps([item]), encoding="utf-8")
    prompts = read_prompts([lines, listed])
    assert [prompt.messages for prompt in prompts] == [messages, messages]
    assert [prompt.where for prompt in prompts] == [f"{lines}: line 2", f"{listed}: item 1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", "", "holds no prompts"),
        ("p.json", "[]", "holds no prompts"),
        ("p.jsonl", '{"text": "a"}\n{"text": \n', ": line 2: not valid JSON"),
        ("p.json", "[{]", "not valid JSON"),
        ("p.json", '{"text": "a"}', "holds no list"),
        ("p.jsonl", '{"text": "a"}\n\n{"answer": "a"}', ": line 3: has none of messages, prompt, instruction"),
        ("p.json", '[{"text": "a"}, "b"]', ": item 2: has none of"),
        ("p.jsonl", '{"prompt": 3}', ': line 1: "prompt" is not text'),
        ("p.jsonl", '{"turns": [3]}', ': line 1: "turns" is not text'),
        ("p.jsonl", '{"messages": ["a"]}', ': line 1: "messages" must be a list of objects with "role"'),
        ("p.jsonl", '{"messages": [{"role": "system", "content": "a"}]}', '"messages" has none of the user'),
    ],
)
def test_refusals(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(InputError) as refusal:
        read_prompts([file])
    assert str(refusal.value).startswith(f"--data {file}: ")
    assert message in str(refusal.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: No such file"):
        read_prompts([tmp_path / "none.jsonl"])
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(InputError, match=r"not UTF-8 text \(byte 10\)"):
        read_prompts([tmp_path / "latin.jsonl"])


def test_ids_with_and_without_a_template(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"text": "ab"}')
    prompts, tokenizer = read_prompts([file]), Tokenizer(toy.tokenizer().to_str(), "toy")
    assert encode_prompts(prompts, tokenizer, None, 9) == [[toy.BOS, 97, 98]]
    template = ChatTemplate(toy.CHAT_TEMPLATE, {"bos_token": "<s>"})
    assert encode_prompts(prompts, tokenizer, template, 9) == [[toy.BOS, toy.USER, 97, 98, toy.ASSISTANT]]


def test_a_prompt_longer_than_the_context(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"text": "ab"}\n{"text": "abcd"}')
    tokenizer = Tokenizer(toy.tokenizer().to_str(), "toy")
    assert len(encode_prompts(read_prompts([file]), tokenizer, None, 6)) == 2
    with pytest.raises(InputError, match=r"p\.jsonl: line 2: a prompt of 5 tokens, and the model reads 5"):
        encode_prompts(read_prompts([file]), tokenizer, None, 5)
