"""Weights in safetensors: read back as written, by us and by the safetensors library, aligned, one at a time."""

import json
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from dspark_compiler.artifact import ParamInfo, aligned_zeros
from dspark_compiler.artifact.tensors import ALIGNMENT, read_params, write_params
from dspark_compiler.errors import ArtifactError

DTYPES = ["bool", "int8", "uint8", "int32", "int64", "uint16", "float16", "float32", "float64"]
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: st_numpy.arrays(dtype, st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
)


# Names an artifact keeps for itself are refused; a test of its own says so.
names = st.text(min_size=1, max_size=6).filter(lambda name: not name.startswith(("_pad.", "__metadata__")))


@given(st.dictionaries(names, arrays, max_size=6), st.sampled_from([1, 100, 1 << 20]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path: Path, tensors: dict[str, np.ndarray], shard_bytes: int) -> None:
    infos = dict(write_params(tmp_path, tensors.items(), shard_bytes))
    read = read_params(tmp_path, infos, prefault=True)
    assert read.keys() == tensors.keys()
    other = {}
    for file in {info.file for info in infos.values()}:
        other |= safetensors.numpy.load_file(tmp_path / file)
    for name, tensor in tensors.items():
        for back in (read[name], other[name]):
            assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
            np.testing.assert_array_equal(back, tensor)
        assert tensor.size == 0 or read[name].ctypes.data % ALIGNMENT == 0


def test_bfloat16_is_stored_as_such_and_handed_over_as_its_bits(tmp_path: Path) -> None:
    tensor = np.array([[1.5, -2], [0, 3e38]], ml_dtypes.bfloat16)
    infos = dict(write_params(tmp_path, [("w", tensor)]))
    assert infos["w"] == ParamInfo("params/00001.safetensors", (2, 2), "uint16")
    np.testing.assert_array_equal(read_params(tmp_path, infos, prefault=False)["w"], tensor.view(np.uint16))
    with safetensors.safe_open(tmp_path / infos["w"].file, "numpy") as file:
        assert file.get_slice("w").get_dtype() == "BF16"


def test_bfloat16_is_called_so_where_compiled_functions_take_it(tmp_path: Path) -> None:
    tensor = np.array([[1.5, -2], [0, 3e38]], ml_dtypes.bfloat16)
    infos = dict(write_params(tmp_path, [("w", tensor)], bfloat16="bfloat16"))
    assert infos["w"] == ParamInfo("params/00001.safetensors", (2, 2), "bfloat16")
    np.testing.assert_array_equal(read_params(tmp_path, infos, prefault=False)["w"], tensor)


def test_views_in_any_order_are_stored_as_they_look(tmp_path: Path) -> None:
    tensor = np.arange(24, dtype=np.float32).reshape(4, 6)
    infos = dict(write_params(tmp_path, [("t", tensor.T), ("s", tensor[::2, 1:4])]))
    read = read_params(tmp_path, infos, prefault=False)
    np.testing.assert_array_equal(read["t"], tensor.T)
    np.testing.assert_array_equal(read["s"], tensor[::2, 1:4])


def test_writing_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    class Tracked(np.ndarray):
        def __del__(self) -> None:
            alive.pop()

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for i in range(6):
            alive.append(i)
            assert len(alive) <= 2  # the one made and the one in the loop's hands
            yield f"w{i}", np.zeros(1000, np.float32).view(Tracked)

    dict(write_params(tmp_path, tensors()))


def test_shards_hold_about_what_they_should(tmp_path: Path) -> None:
    tensors = [(f"w{i}", np.full(25, i, np.float32)) for i in range(10)] + [("big", np.zeros(1000, np.float32))]
    infos = dict(write_params(tmp_path, tensors, shard_bytes=400))
    counts: dict[str, int] = {}
    for info in infos.values():
        counts[info.file] = counts.get(info.file, 0) + 1
    assert list(counts.values()) == [3, 3, 3, 1, 1]


def test_many_long_names_go_to_further_files(tmp_path: Path) -> None:
    tensors = {f"{'long' * 50}.{i}": np.full(3, i, np.int32) for i in range(500)}
    infos = dict(write_params(tmp_path, tensors.items()))
    assert len({info.file for info in infos.values()}) > 1
    read = read_params(tmp_path, infos, prefault=False)
    assert all((read[name] == tensor).all() for name, tensor in tensors.items())


def test_writing_to_a_weight_never_reaches_the_file(tmp_path: Path) -> None:
    infos = dict(write_params(tmp_path, [("w", np.ones(100, np.float32))]))
    read_params(tmp_path, infos, prefault=True)["w"][:] = 7
    assert (read_params(tmp_path, infos, prefault=True)["w"] == 1).all()


def test_unaligned_tensors_of_another_writer_are_copied(tmp_path: Path) -> None:
    (tmp_path / "params").mkdir()
    tensors = {"a": np.arange(3, dtype=np.float32), "b": np.arange(5, dtype=np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "params/x.safetensors")
    infos = {name: ParamInfo("params/x.safetensors", t.shape, "float32") for name, t in tensors.items()}
    for name, back in read_params(tmp_path, infos, prefault=False).items():
        assert back.ctypes.data % ALIGNMENT == 0
        np.testing.assert_array_equal(back, tensors[name])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", np.zeros(1)), ("a", np.zeros(1))], "parameter name 'a' is taken"),
        ([("_pad.0", np.zeros(1))], "parameter name '_pad.0' is taken"),
        ([("a", np.zeros(1, np.complex64))], "parameter 'a' has type complex64"),
        ([("a", np.zeros(1, ">f4"))], "parameter 'a' has type >f4"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, tensors: list[tuple[str, np.ndarray]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dict(write_params(tmp_path, tensors))


W = ParamInfo("params/00001.safetensors", (4,), "float32")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (ParamInfo(W.file, (5,), "float32"), r"tensor w is not the float32 \[5\] of the manifest"),
        (ParamInfo(W.file, (2, 2), "float32"), "tensor w is not the float32"),
        (ParamInfo(W.file, (4,), "int32"), "tensor w is not the int32"),
        (ParamInfo(W.file, (8,), "uint16"), "tensor w is not the uint16"),
    ],
)
def test_a_tensor_unlike_the_manifest(tmp_path: Path, info: ParamInfo, message: str) -> None:
    dict(write_params(tmp_path, [("w", np.zeros(4, np.float32))]))
    with pytest.raises(ArtifactError, match=message):
        read_params(tmp_path, {"w": info}, prefault=False)


def header(entry: object) -> bytes:
    text = json.dumps({"w": entry}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\1\2", "not a safetensors file"),
        (bytes([255] * 40), "not a safetensors file"),
        (b"\4\0\0\0\0\0\0\0nope" + bytes(100), "not a safetensors file"),
        (b"\2\0\0\0\0\0\0\0[]" + bytes(100), "not a safetensors file"),
        (b"\2\0\0\0\0\0\0\0{}" + bytes(100), "has no tensor w"),
        (header({}) + bytes(100), "tensor w is not"),
        (header({"dtype": "F32", "shape": [4], "data_offsets": ["0", "16"]}) + bytes(100), "tensor w is not"),
        (header({"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}) + bytes(100), "tensor w is not"),
        (header({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}) + bytes(15), "cut short inside tensor w"),
    ],
)
def test_files_that_are_damaged(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "params").mkdir()
    (tmp_path / W.file).write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_params(tmp_path, {"w": W}, prefault=False)
    assert W.file in str(caught.value)


@given(st.lists(st.integers(0, 9), max_size=3).map(tuple), st.sampled_from(DTYPES))
def test_aligned_zeros(shape: tuple[int, ...], dtype: str) -> None:
    array = aligned_zeros(shape, dtype)
    assert (array.shape, array.dtype.name) == (shape, dtype)
    assert array.size == 0 or array.ctypes.data % ALIGNMENT == 0
    assert not array.any()
