"""Kernels as AMD's GPUs get them: the instructions, and what a kernel takes of a compute unit."""

from pathlib import Path

import pytest
import tvm
from tvm.tirx.script.builder import ir as T

from dspark_compiler.backends.rocm.code_object import read_kernels
from dspark_compiler.backends.rocm.messagepack import unpack
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.rocm.architectures import ARCHITECTURES
from dspark_compiler.schedules.rocm.matrix_linear import matrix_tile
from dspark_compiler.schedules.simt.accept import accept
from dspark_compiler.schedules.simt.draw import draw
from dspark_compiler.schedules.simt.row_schedule import RowSchedule
from dspark_compiler.schedules.simt.select_slots import select_slots
from dspark_compiler.schedules.simt.stream_linear import stream_linear
from dspark_compiler.schedules.simt.stream_output import Options
from dspark_compiler.schedules.simt.threads import barrier, launch, shared
from dspark_compiler.schedules.simt.token_probs import token_probs
from dspark_compiler.schedules.slot_shape import CacheShape
from dspark_compiler.schedules.tir import Arg, Buffer, kernel
from tests.rocm.tools import compiled, fits

_MATRIX = {
    ("gfx90a", "float16"): "v_mfma_f32_16x16x16f16",
    ("gfx90a", "uint16"): "v_mfma_f32_16x16x16bf16_1k",
    ("gfx942", "float16"): "v_mfma_f32_16x16x16_f16",
    ("gfx942", "uint16"): "v_mfma_f32_16x16x16_bf16",
    ("gfx1100", "float16"): "v_wmma_f32_16x16x16_f16",
    ("gfx1100", "uint16"): "v_wmma_f32_16x16x16_bf16",
    ("gfx1201", "float16"): "v_wmma_f32_16x16x16_f16",
    ("gfx1201", "uint16"): "v_wmma_f32_16x16x16_bf16",
}


_NAMES = {"float16": "float16", "uint16": "bfloat16"}


@pytest.mark.parametrize("dtype", _NAMES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_linears_read_sixteen_bytes_and_multiply_matrices(arch: str, dtype: str, tmp_path: Path) -> None:
    few, many = LinearWorkload(8, 256, 512, dtype), LinearWorkload(128, 256, 512, dtype)
    options = Options(activation="silu", norm_eps=1e-6)
    made = compiled(
        arch,
        {
            "stream": _stream(arch, few, options),
            "tile": matrix_tile(ARCHITECTURES[arch], _NAMES[dtype])("tile", many),
        },
    )
    stream, tile = (made.instructions(tmp_path, f"{name}_kernel") for name in ("stream", "tile"))
    loads = [line.split()[0] for line in stream if line.startswith("global_load")]
    assert set(loads) == {"global_load_dwordx4" if ARCHITECTURES[arch].wave == 64 else "global_load_b128"}
    # Teams add up in their rows of lanes, without a trip through local memory.
    assert any("row_half_mirror" in line for line in stream)
    assert not any("bpermute" in line or "swizzle" in line for line in stream)
    multiplied = [line.split()[0] for line in tile if line.startswith(("v_mfma", "v_wmma"))]
    assert multiplied
    assert set(multiplied) == {_MATRIX[arch, dtype]}
    fits(made, arch)


def _stream(arch: str, work: LinearWorkload, options: Options) -> tvm.tirx.PrimFunc:
    return stream_linear("stream", work, RowSchedule(2), options, in_order=ARCHITECTURES[arch].asks_ahead)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_codes_are_decoded_on_their_way_to_matrices(arch: str, tmp_path: Path) -> None:
    functions: dict[str, tvm.tirx.PrimFunc] = {}
    template = matrix_tile(ARCHITECTURES[arch], "bfloat16")
    for stored, scales in (("int8", "float32"), ("float8_e4m3", "float32"), ("int4-g128", "float16")):
        kind = stored.split("-")[0]
        few, many = (LinearWorkload(rows, 256, 512, stored, scale_dtype=scales) for rows in (1, 128))
        functions[f"stream_{kind}"] = _stream(arch, few, Options(norm_eps=1e-6))
        functions[f"tile_{kind}"] = template("tile", many)
    verified = LinearWorkload(8, 256, 512, "int8", gated=True)
    made = compiled(arch, functions | {"verify": _stream(arch, verified, Options(activation="silu", norm_eps=1e-6))})
    fits(made, arch)
    for name in functions:
        lines = [line.split()[0] for line in made.instructions(tmp_path, f"{name}_kernel")]
        if name.startswith("tile"):
            multiplied = {line for line in lines if line.startswith(("v_mfma", "v_wmma"))}
            assert multiplied == {_MATRIX[arch, "uint16"]}, name
        else:
            wide = "global_load_dwordx4" if ARCHITECTURES[arch].wave == 64 else "global_load_b128"
            # Of x, its norm and the weight; what is narrower is scales.
            narrow = [line for line in lines if line.startswith("global_load") and line != wide]
            assert len(narrow) <= 2 < lines.count(wide), name


@pytest.mark.parametrize("arch", ["gfx90a", "gfx1201"])  # of the others whole models are compiled
def test_tokens_are_drawn_and_slots_chosen_in_registers(arch: str) -> None:
    functions = {
        "select": select_slots("select", CacheShape(2, 3, 700, 16, 24), 2, 3),
        "probs": token_probs("probs", 2, 4, 5000)[0],
        "draw": draw("draw", 2, 5000)[0],
        "accept": accept("accept", 2, 8, 5000, drafts=7)[0],
    }
    made = compiled(arch, functions)
    assert {name.split("_")[0] for name in made.kernels} == set(functions)
    fits(made, arch)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_barrier_waits_for_memory_too(arch: str, tmp_path: Path) -> None:
    def body(x: Buffer, y: Buffer) -> None:
        with launch((4,), 64) as (group, thread):
            tile = shared(64)
            T.buffer_store(tile, x[group * 64 + thread], [thread])
            barrier()
            T.buffer_store(y, tile[63 - thread], [group * 64 + thread])

    made = compiled(arch, {"turn": kernel("turn", [Arg("x", (256,)), Arg("y", (256,))], body)})
    lines = [line.split()[0] for line in made.instructions(tmp_path, "turn_kernel")]
    store = next(i for i, line in enumerate(lines) if line.startswith(("ds_write", "ds_store")))
    meeting = next(i for i, line in enumerate(lines) if line.startswith("s_barrier"))
    load = next(i for i, line in enumerate(lines) if line.startswith(("ds_read", "ds_load")))
    assert store < meeting < load
    assert any(line in ("s_waitcnt", "s_wait_dscnt", "s_wait_loadcnt_dscnt") for line in lines[store:meeting])


def test_functions_are_the_exact_ones(tmp_path: Path) -> None:
    def body(x: Buffer, y: Buffer) -> None:
        with launch((1,), 64) as (_, thread):
            T.buffer_store(y, T.sin(x[thread]) + T.pow(x[thread], T.float32(0.3)), [thread])

    made = compiled("gfx1100", {"f": kernel("f", [Arg("x", (64,)), Arg("y", (64,))], body)})
    lines = made.instructions(tmp_path, "f_kernel")
    assert not any(line.startswith("v_sin_f32") for line in lines)  # 2^-11 off, and no good for large numbers
    assert any(line.startswith("v_mad_u64_u32") for line in lines)  # the product that reduces large ones


def test_arguments_are_where_the_launch_puts_them() -> None:
    def body(x: Buffer, n: Buffer, y: Buffer) -> None:
        with launch((2, 3), 32) as (column, row, thread):
            T.buffer_store(y, x[thread] + T.cast(n[column + row], "float32"), [thread])

    args = [Arg("x", (32,)), Arg("n", (8,), "int64"), Arg("y", (32,))]
    made = compiled("gfx942", {"f": kernel("f", args, body)})
    (entry,) = made.description["kernels"]
    assert made.description["arch"] == "gfx942"
    assert entry["args"] == [{"kind": "buffer", "offset": offset} for offset in (0, 8, 16)]
    assert entry["launch"] == ["blockIdx.x", "blockIdx.y", "threadIdx.x"]
    assert (entry["argument_bytes"], entry["most_threads"]) == (24, 256)
    assert [a.kind for a in made.kernels["f_kernel"].arguments] == ["global_buffer"] * 3


def test_lanes_exchange_over_what_there_is_an_instruction_for() -> None:
    def body(x: Buffer, y: Buffer) -> None:
        with launch((1,), 64) as (_, thread):
            other = T.tvm_warp_shuffle_xor(T.uint32(0), x[thread], T.int32(16), T.int32(32), T.int32(32))
            T.buffer_store(y, other, [thread])

    with pytest.raises(ValueError, match=r"lanes exchange over distances of \(1, 2, 4\), not 16"):
        compiled("gfx942", {"f": kernel("f", [Arg("x", (64,)), Arg("y", (64,))], body)})


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(60), b"no code object at all" * 10])
def test_what_is_no_code_object(data: bytes) -> None:
    with pytest.raises(ValueError, match="no code object"):
        read_kernels(data)


def test_metadata() -> None:
    data = b"\x83\xa1a\x93\x01\xcd\x01\x00\xff\xa1b\xd9\x02xy\xa1c\xdc\x00\x02\xc3\xc0"
    assert unpack(data) == {"a": [1, 256, -1], "b": "xy", "c": [True, None]}
    with pytest.raises(ValueError, match="cut short"):
        unpack(data[:-1])
    with pytest.raises(ValueError, match="kind 0xc4"):
        unpack(b"\xc4")
