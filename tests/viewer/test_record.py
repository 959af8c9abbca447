"""The record of passes as a file, and what is counted of it."""

import gzip
import json

import pytest

from dspark_compiler.errors import ArtifactError
from dspark_compiler.viewer.record import Counts, count_operators, pack, steps, unpack

RECORD = {
    "format": 1,
    "steps": [
        {"name": "capture", "matched": [], "declined": []},
        {
            "name": "drop_negations",
            "matched": [{"text": "dropped", "entry": "decode", "where": ["neg", "neg_1"]}],
            "declined": [{"text": "is read twice", "entry": "decode", "where": ["neg_2"]}],
        },
    ],
    "entries": {
        "decode": {
            "kind": "decode",
            "batch": 1,
            "width": 1,
            "nodes": [
                ["%x", None, [[0, 1, "input", "", "float32[1]"]]],
                ["%neg", 0, [[0, 0, "aten.neg", "%x", "float32[1]"]]],
                ["%neg_1", 0, [[0, 0, "aten.neg", "%neg", "float32[1]"]]],
                ["%neg_2", 0, [[0, 0, "aten.neg", "%neg_1", "float32[1]"], [1, 1, "aten.neg", "%x", "float32[1]"]]],
                ["%tanh", 1, [[1, 1, "aten.tanh", "%neg_2, '</script>'", "float32[1]"]]],
                ["return", None, [[0, 1, "output", "out=%neg_2", ""]]],
            ],
        }
    },
}


def test_a_record_comes_back():
    assert unpack(pack(RECORD), "here") == RECORD
    assert pack(RECORD) == pack(RECORD)


NO_RECORDS = {
    "nothing": b"",
    "not packed": b"no",
    "not JSON": gzip.compress(b"{"),
    "a list": gzip.compress(b"[1]"),
    "another format": gzip.compress(b'{"format": 99}'),
    "cut off": pack(RECORD)[:40],
}


@pytest.mark.parametrize("data", NO_RECORDS.values(), ids=NO_RECORDS)
def test_what_is_no_record_is_refused(data):
    with pytest.raises(ArtifactError, match=r"^a/passes: .*compile again$"):
        unpack(data, "a/passes")


def test_operators_are_counted_step_by_step():
    assert count_operators(RECORD, "decode") == [Counts("aten.neg", (3, 1)), Counts("aten.tanh", (0, 1))]


def test_steps_say_what_they_did():
    first, second = steps(RECORD)
    assert (first.number, first.name, first.operators, first.matched, first.declined) == (0, "capture", 3, 0, 0)
    assert (second.number, second.name, second.operators) == (1, "drop_negations", 2)
    assert (second.matched, second.declined) == (2, 1)


def test_a_record_is_json():
    assert json.loads(gzip.decompress(pack(RECORD))) == RECORD
