"""Bytes a decoded token reads."""

import dataclasses

import pytest

from dspark_compiler.artifact import FileInfo, ParamInfo, TargetInfo, TensorInfo
from dspark_compiler.bench.roofline import token_traffic
from tests.runtime import toy


def test_weights_tables_and_cache() -> None:
    base = toy.manifest()
    decode = dataclasses.replace(
        base.entry_points["decode"],
        params=("embed", "packed", "norm", "square"),
        states=("k_cache.0", "v_cache.0", "rotated_queries.0"),
    )
    file = "params/00001.safetensors"
    params = {
        "embed": ParamInfo(file, (toy.V, 16), "float32"),  # one row is read
        "packed": ParamInfo(file, (9, 16, 32), "float32"),  # 260 rows in panels of 32
        "norm": ParamInfo(file, (16,), "float32"),
        "square": ParamInfo(file, (16, 16), "uint16"),
        "unused": ParamInfo(file, (1000, 1000), "float32"),
    }
    states = {name: TensorInfo((toy.BATCH, 2, toy.SLOTS, 8), "float32") for name in decode.states}
    manifest = dataclasses.replace(
        base,
        entry_points=base.entry_points | {"decode": decode},
        params=params,
        states=states,
        files={file: FileInfo(1, "0" * 64)},
    )
    traffic = token_traffic(manifest)
    assert traffic.weights == 16 * 4 + 9 * 16 * 32 * 4 + 16 * 4 + 16 * 16 * 2
    assert traffic.slot == 2 * 2 * 8 * 4  # keys and values, two heads of eight floats
    assert traffic.bytes_at(10.5) == pytest.approx(traffic.weights + 10.5 * traffic.slot)
    for kind in ("onnxruntime", "vulkan", "rocm"):
        other = dataclasses.replace(manifest, target=TargetInfo(kind, "any", "any"))
        assert token_traffic(other).weights - traffic.weights == (toy.V - 1) * 16 * 4  # the one table is the head, too
    assert traffic.bytes_at(1e6) == traffic.weights + toy.SLOTS * traffic.slot  # no more than there are


def test_codes_of_a_head_beside_an_embedding_are_read_whole() -> None:
    file = "params/00001.safetensors"
    params = {
        "embed": ParamInfo(file, (toy.V, 16), "float16"),
        "head.codes": ParamInfo(file, (toy.V, 16), "int8"),
        "head.scales": ParamInfo(file, (toy.V, 1), "float32"),
    }
    base = toy.manifest()
    decode = dataclasses.replace(base.entry_points["decode"], params=tuple(params))
    manifest = dataclasses.replace(
        base,
        target=TargetInfo("vulkan", "generic", "any"),
        entry_points=base.entry_points | {"decode": decode},
        params=params,
        files={file: FileInfo(1, "0" * 64)},
    )
    assert token_traffic(manifest).weights == 16 * 2 + toy.V * (16 + 4)
