"""The manifest: round trips, and each way to be wrong named with its path."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark_compiler.artifact import (
    EntrySpec,
    FileInfo,
    KVInfo,
    Manifest,
    ModelInfo,
    NamedTensor,
    ParamInfo,
    TargetInfo,
    TensorInfo,
)
from dspark_compiler.artifact.manifest import DTYPES
from dspark_compiler.errors import ArtifactError

names = st.text(min_size=1, max_size=12)
paths = st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5})?\.[a-z]{2}", fullmatch=True)
shapes = st.lists(st.integers(0, 1 << 40), max_size=4).map(tuple)
dtypes = st.sampled_from(DTYPES)
tensors = st.builds(NamedTensor, names, shapes, dtypes)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    files = draw(st.dictionaries(paths, st.builds(FileInfo, st.integers(0), st.text("0123456789abcdef")), min_size=1))
    params = draw(st.dictionaries(names, st.builds(ParamInfo, st.sampled_from(sorted(files)), shapes, dtypes)))
    states = draw(st.dictionaries(names, st.builds(TensorInfo, shapes, dtypes)))
    batch = draw(st.integers(1, 8))

    def entry(kind: str) -> EntrySpec:
        subset_of = [st.lists(st.sampled_from(sorted(pool))) if pool else st.just([]) for pool in (states, params)]
        used = [tuple(draw(some)) for some in subset_of]
        inputs, outputs = (tuple(draw(st.lists(tensors, max_size=3))) for _ in range(2))
        rows = 1 if kind == "prefill" else batch
        placed = tuple(tensor.name for tensor in outputs[: draw(st.integers(0, 3))])
        return EntrySpec(kind, rows, draw(st.integers(1, 128)), inputs, *used, outputs, placed)

    kinds = ["prefill", "decode", *draw(st.lists(st.sampled_from(["verify", "commit"]), unique=True))]
    optional_id = st.none() | st.integers(0)
    model = st.builds(
        ModelInfo,
        *(names, names, names),
        *(st.integers(1), st.integers(), st.integers(), st.none() | st.integers(1)),
        *(optional_id, st.lists(st.integers(0)).map(tuple), optional_id),
    )
    return Manifest(
        compiler_version=draw(names),
        tvm_version=draw(names),
        model=draw(model),
        target=draw(st.builds(TargetInfo, names, names, names, st.lists(names).map(tuple))),
        dtype=draw(dtypes),
        max_seq_len=draw(st.integers(1)),
        max_batch=batch,
        kv=draw(st.builds(KVInfo, st.integers(1), dtypes)),
        entry_points={f"{kind}_{i}": entry(kind) for i, kind in enumerate(kinds)},
        states=states,
        params=params,
        files=files,
    )


@given(manifests())
@settings(max_examples=40, deadline=None)
def test_round_trip(manifest: Manifest) -> None:
    assert Manifest.loads(manifest.dumps(), "manifest.json") == manifest


def good() -> dict[str, Any]:
    tensor = NamedTensor("logits", (1, 1, 8), "float32")
    entry = EntrySpec("decode", 1, 1, (NamedTensor("input_ids", (1, 1), "int64"),), ("cache",), ("w",), (tensor,))
    manifest = Manifest(
        compiler_version="0.1.0",
        tvm_version="0.27",
        model=ModelInfo("m", "A", "a", 8, 4, 1, 16, None, (2,)),
        target=TargetInfo("cpu", "native", "x86_64-linux"),
        dtype="float32",
        max_seq_len=16,
        max_batch=1,
        kv=KVInfo(16, "float32"),
        entry_points={"decode": entry, "prefill_4": EntrySpec("prefill", 1, 4, (), (), (), ())},
        states={"cache": TensorInfo((4,), "float32")},
        params={"w": ParamInfo("params/1.safetensors", (2, 2), "uint16")},
        files={"params/1.safetensors": FileInfo(10, "ab")},
    )
    return json.loads(manifest.dumps())


DELETE = object()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("kv.slots", DELETE, "kv.slots: missing"),
        ("kv.color", 1, "kv.color: unknown field"),
        ("model", [], "model: expected an object"),
        ("model.vocab_size", "8", "model.vocab_size: expected an integer, got '8'"),
        ("model.vocab_size", True, "model.vocab_size: expected an integer, got True"),
        ("model.vocab_size", 0, "model.vocab_size: 0 must be 1 or more"),
        ("model.bos_token_id", 1.5, "model.bos_token_id: expected an integer, got 1.5"),
        ("model.eos_token_ids", 2, "model.eos_token_ids: expected a list"),
        ("model.name", None, "model.name: expected a string, got None"),
        ("heads", {}, "heads.type: missing"),
        ("states", [], "states: expected an object"),
        ("states.cache.dtype", "float8", "states.cache: type float8 is not one of"),
        ("states.cache.shape", [4, -1], "states.cache: shape [4, -1] has a negative extent"),
        ("entry_points.decode.kind", "encode", "entry_points.decode.kind: 'encode' is not one of prefill, decode"),
        ("entry_points.decode.states", ["scratch"], "entry_points.decode: state scratch is not in states"),
        ("entry_points.decode.params", ["v"], "entry_points.decode: parameter v is not in params"),
        ("entry_points.decode.destinations", ["x"], "entry_points.decode: destination x is not in outputs"),
        ("entry_points.decode.batch", 2, "entry_points.decode: batch 2, width 1 do not fit max_batch 1"),
        ("entry_points.prefill_4.width", 0, "entry_points.prefill_4: batch 1, width 0 do not fit"),
        ("entry_points.decode", DELETE, "entry_points: no decode"),
        ("entry_points.decode.inputs", [3], "entry_points.decode.inputs[0]: expected an object"),
        ("entry_points.decode.outputs", [{"name": "x", "shape": [1], "dtype": "f"}], "decode.x: type f is not one of"),
        ("params.w.file", "params/2.safetensors", "params.w.file: params/2.safetensors is not in files"),
        ("max_batch", 0, "max_batch: 0 must be 1 or more"),
        *[
            ("files", {name: {"size": 1, "sha256": ""}}, f"files.{name}: path leaves the folder")
            for name in ("../x", "/etc/x", "a/../../x", "a//b", "./a", "a\\b", "")
        ],
    ],
)
def test_what_does_not_hold_is_named(path: str, value: object, message: str) -> None:
    data = good()
    *parents, last = path.split(".") if not path.startswith("files") else [path]
    place = data
    for name in parents:
        place = place[name]
    if value is DELETE:
        del place[last]
    else:
        place[last] = value
    if path == "files":
        data["params"], data["entry_points"]["decode"]["params"] = {}, []
    with pytest.raises(ArtifactError) as caught:
        Manifest.loads(json.dumps(data), "a/manifest.json")
    assert str(caught.value).startswith("a/manifest.json: ")
    assert message in str(caught.value)
    assert str(caught.value).endswith("compile again")


def test_a_newer_format_says_so_whatever_else_it_holds() -> None:
    with pytest.raises(ArtifactError, match=r"format 8 is newer than the format 7.*upgrade dspark-compile"):
        Manifest.loads('{"format_version": 8, "everything": "else"}', "m")


def test_an_older_format_says_so() -> None:
    with pytest.raises(ArtifactError, match=r"format 1 is older than the format 7 this version reads; compile again"):
        Manifest.loads('{"format_version": 1, "everything": "else"}', "m")


@pytest.mark.parametrize("text", ["", "{", '{"format_version": 1', "\xff", "[" * 100_000])
def test_not_json(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"^m: not valid JSON"):
        Manifest.loads(text.encode("latin-1"), "m")


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"format_version": "1"}', '{"format_version": 0}'])
def test_json_of_something_else(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"^m: no format_version; not an artifact"):
        Manifest.loads(text, "m")
