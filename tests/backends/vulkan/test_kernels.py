"""Kernels written for what operators do not show: their SPIR-V, and what they do on a device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.tir import Arg, kernel, when
from tests.backends.vulkan.shaders import Shader, run, shaders_of, validate
from tests.vulkan.device import need_vulkan

THREADS = 64


def launched(args: list[Arg], body: Callable[..., None], threads: int = THREADS, groups: int = 1) -> Any:
    """A kernel whose ``body`` gets the thread's index and the buffers."""

    def emit(*buffers: Any) -> None:
        with T.launch_thread("blockIdx.x", groups), T.launch_thread("threadIdx.x", threads) as thread:
            body(thread, *buffers)

    return kernel("main", args, emit)


def only(function: Any) -> Shader:
    (shader,) = shaders_of({"main": function})
    validate(shader)
    return shader


def test_sixteen_bytes_are_loaded_at_once() -> None:
    def body(thread: Any, x: Any, y: Any) -> None:
        with T.vectorized(0, 8) as lane:
            T.buffer_store(y, T.cast(x[thread * 8 + lane], "float32"), [thread * 8 + lane])

    function = launched([Arg("x", (512,), "float16"), Arg("y", (512,))], body)
    text = only(function).disassembly()
    assert text.count("OpLoad %v4uint") == 1
    assert text.count("Aligned 16") == 3  # two stores of four float32
    need_vulkan()
    x = np.arange(512, dtype="float16")
    np.testing.assert_array_equal(run(function, x, np.zeros(512, "float32"))[1], x.astype("float32"))


def test_what_is_not_aligned_is_loaded_in_pieces() -> None:
    def body(thread: Any, x: Any, y: Any) -> None:
        with T.vectorized(0, 4) as lane:
            T.buffer_store(y, x[thread * 6 + 2 + lane], [thread * 4 + lane])

    function = launched([Arg("x", (512,)), Arg("y", (256,))], body)
    text = only(function).disassembly()
    assert text.count("Aligned 8") == 2
    need_vulkan()
    x = np.arange(512, dtype="float32")
    expected = np.stack([x[6 * t + 2 : 6 * t + 6] for t in range(THREADS)]).ravel()
    np.testing.assert_array_equal(run(function, x, np.zeros(256, "float32"))[1], expected)


def test_products_are_rounded_before_they_are_added_to() -> None:
    """Whether a driver fuses the two must not depend on the kernel: rows of decode are to have the bits of verify's."""

    def body(thread: Any, x: Any, y: Any) -> None:
        T.buffer_store(y, x[thread] * x[thread] + y[thread] * T.float32(3.0), [thread])

    function = launched([Arg("x", (THREADS,)), Arg("y", (THREADS,))], body)
    text = only(function).disassembly()
    assert text.count("NoContraction") == text.count("OpFMul") == 2
    need_vulkan()
    x, y = np.random.default_rng(0).standard_normal((2, THREADS)).astype("float32")
    np.testing.assert_array_equal(run(function, x, y)[1], x * x + y * np.float32(3.0))


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32"])
def test_what_divisions_leave_is_defined_for_negative_numbers(dtype: str) -> None:
    def body(thread: Any, x: Any, y: Any, *rests: Any) -> None:
        T.buffer_store(rests[0], T.truncmod(x[thread], y[thread]), [thread])
        T.buffer_store(rests[1], T.floormod(x[thread], y[thread]), [thread])

    function = launched([Arg(name, (THREADS,), dtype) for name in "xyab"], body)
    assert "OpSRem" not in only(function).disassembly()
    need_vulkan()
    x, y = np.arange(THREADS) * 7 - 200 * (dtype != "uint32"), np.tile([1, 3, 5, 8], THREADS // 4)
    y = y if dtype == "uint32" else y * np.repeat([1, -1], THREADS // 2)
    empty = np.zeros((2, THREADS), dtype)
    found = run(function, x.astype(dtype), y.astype(dtype), *empty)[2:]
    np.testing.assert_array_equal(found, np.stack([np.fmod(x, y), np.mod(x, y)]).astype(dtype))


def test_many_arguments_lie_behind_an_address() -> None:
    count = 20

    def body(thread: Any, *buffers: Any) -> None:
        total = buffers[0][thread]
        for buffer in buffers[1:-1]:
            total = total + buffer[thread]
        T.buffer_store(buffers[-1], total, [thread])

    function = launched([Arg(f"x{i}", (THREADS,)) for i in range(count)], body)
    shader = only(function)
    assert shader.entry["block"] == "address"
    assert shader.entry["block_bytes"] == 8 * count
    need_vulkan()
    arrays = [np.full(THREADS, 2.0**i, "float32") for i in range(count)]
    assert run(function, *arrays)[-1][5] == 2.0 ** (count - 1) - 1


def test_arguments_say_what_is_done_with_them() -> None:
    def body(thread: Any, x: Any, y: Any, z: Any) -> None:
        T.buffer_store(y, x[thread], [thread])
        T.buffer_store(z, z[thread] + x[thread], [thread])

    shader = only(launched([Arg(name, (THREADS,)) for name in "xyz"], body))
    access = {arg["offset"]: arg["access"] for arg in shader.entry["args"]}
    assert sorted(access.values()) == ["r", "rw", "w"]


def test_numbers_are_arguments_too() -> None:
    with IRBuilder() as builder, T.prim_func(s_tir=False):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        buffer = T.match_buffer(T.arg("x_handle", T.handle()), (THREADS,), "float32")
        factor, shift = T.arg("factor", T.float16()), T.arg("shift", T.int64())
        with T.launch_thread("blockIdx.x", 1), T.launch_thread("threadIdx.x", THREADS) as thread:
            value = buffer[thread] * T.cast(factor, "float32") + T.cast(shift, "float32")
            T.buffer_store(buffer, value, [thread])
    shader = only(builder.get())
    assert {arg["dtype"] for arg in shader.entry["args"] if arg["kind"] == "scalar"} == {"float32", "int64"}


def test_the_work_group_shares_memory_and_waits() -> None:
    def body(thread: Any, x: Any, y: Any) -> None:
        shared = T.alloc_buffer((THREADS,), "float32", scope="shared")
        T.buffer_store(shared, x[thread], [thread])
        T.evaluate(T.tvm_storage_sync("shared"))
        T.buffer_store(y, shared[THREADS - 1 - thread], [thread])

    function = launched([Arg("x", (THREADS,)), Arg("y", (THREADS,))], body)
    shader = only(function)
    assert shader.entry["shared_bytes"] == 4 * THREADS
    assert "OpControlBarrier %uint_2 %uint_2 %uint_264" in shader.disassembly()
    need_vulkan()
    x = np.arange(THREADS, dtype="float32")
    np.testing.assert_array_equal(run(function, x, np.zeros_like(x))[1], x[::-1])


def test_a_barrier_orders_buffers_a_kernel_reads_again() -> None:
    def body(thread: Any, x: Any) -> None:
        T.buffer_store(x, T.cast(thread, "float32"), [thread])
        T.evaluate(T.tvm_storage_sync("shared"))
        value = T.Bind(x[THREADS - 1 - thread])
        T.evaluate(T.tvm_storage_sync("shared"))
        T.buffer_store(x, value, [thread])

    function = launched([Arg("x", (THREADS,))], body)
    assert "OpControlBarrier %uint_2 %uint_2 %uint_328" in only(function).disassembly()
    need_vulkan()
    np.testing.assert_array_equal(run(function, np.zeros(THREADS, "float32"))[0], np.arange(THREADS)[::-1])


@pytest.mark.parametrize(("name", "expected"), [("add", 2016), ("max", 63), ("min", 0)])
@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_atomic_operations(name: str, expected: int, dtype: str) -> None:
    def body(thread: Any, x: Any) -> None:
        T.evaluate(T.call_extern(dtype, f"dspark_atomic_{name}", T.address_of(x[0]), T.cast(thread, dtype)))

    function = launched([Arg("x", (1,), dtype)], body)
    only(function)
    need_vulkan()
    assert run(function, np.full(1, 5 if name == "min" else 0, dtype))[0][0] == expected


def test_work_groups_read_what_others_stored() -> None:
    def body(thread: Any, x: Any, y: Any) -> None:
        T.evaluate(T.call_extern("void", "dspark_atomic_store", T.address_of(x[thread]), T.cast(thread, "uint32")))
        T.evaluate(T.call_extern("void", "dspark_device_fence"))
        T.evaluate(T.tvm_storage_sync("shared"))
        other = T.call_extern("uint32", "dspark_atomic_load", T.address_of(x[THREADS - 1 - thread]))
        T.buffer_store(y, other, [thread])

    function = launched([Arg("x", (THREADS,), "uint32"), Arg("y", (THREADS,), "uint32")], body)
    assert "OpMemoryBarrier %uint_1 %uint_72" in only(function).disassembly()
    need_vulkan()
    found = run(function, *(np.zeros(THREADS, "uint32") for _ in range(2)))[1]
    np.testing.assert_array_equal(found, np.arange(THREADS)[::-1])


@pytest.mark.parametrize("lanes", [2, 4, 8])
def test_shuffles_stay_in_groups_of_their_width(lanes: int) -> None:
    def body(thread: Any, x: Any, y: Any) -> None:
        value = T.tvm_warp_shuffle(T.uint32(0), x[thread], T.int32(1), T.int32(lanes), T.int32(lanes))
        T.buffer_store(y, value, [thread])

    function = launched([Arg("x", (THREADS,)), Arg("y", (THREADS,))], body)
    assert "subgroup_shuffle" in only(function).entry["features"]
    need_vulkan()
    x = np.arange(THREADS, dtype="float32")
    np.testing.assert_array_equal(run(function, x, np.zeros_like(x))[1], x // lanes * lanes + 1)


def test_subgroups_add_up_whatever_their_size() -> None:
    def body(thread: Any, x: Any, y: Any) -> None:
        total = T.Bind(T.call_extern("float32", "dspark_subgroup_add", x[thread]))
        size = T.Bind(T.call_extern("int32", "dspark_subgroup_size"))
        T.buffer_store(y, total * T.float32(1000.0) + T.cast(size, "float32"), [thread])

    function = launched([Arg("x", (THREADS,)), Arg("y", (THREADS,))], body)
    only(function)
    need_vulkan()
    y = run(function, np.ones(THREADS, "float32"), np.zeros(THREADS, "float32"))[1]
    size = int(y[0] % 1000)
    assert size in (4, 8, 16, 32, 64)
    np.testing.assert_array_equal(y, 1000 * size + size)


def test_a_read_under_a_condition_is_not_made_without_it() -> None:
    def body(thread: Any, x: Any, y: Any) -> None:
        with when(T.And(thread < 3, x[thread] > T.float32(0.0))):
            T.buffer_store(y, T.float32(1.0), [thread])

    function = launched([Arg("x", (3,)), Arg("y", (THREADS,))], body)
    assert "OpPhi %bool" in only(function).disassembly()


def test_loops_that_end_early() -> None:
    def body(thread: Any, y: Any) -> None:
        count = T.alloc_buffer((1,), "int32", scope="local")
        T.buffer_store(count, T.int32(0), [0])
        with T.While(count[0] < thread):
            T.buffer_store(count, count[0] + 3, [0])
        with T.serial(0, 100) as i:
            with when(i >= 10):
                T.evaluate(T.break_loop())
            T.buffer_store(count, count[0] + 1, [0])
        T.buffer_store(y, count[0], [thread])

    function = launched([Arg("y", (THREADS,), "int32")], body)
    only(function)
    need_vulkan()
    y = run(function, np.zeros(THREADS, "int32"))[0]
    np.testing.assert_array_equal(y, -(-np.arange(THREADS) // 3) * 3 + 10)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda x: T.call_extern("float32", "nobody_knows", x[0]), "nobody_knows"),
        (lambda x: T.tvm_storage_sync("global"), "beyond a work group"),
    ],
)
def test_what_has_no_counterpart_is_named_with_its_kernel(call: Callable[[Any], Any], reason: str) -> None:
    def body(thread: Any, x: Any) -> None:
        T.evaluate(call(x))

    with pytest.raises(LoweringError, match=f"kernel main_kernel: .*{reason}"):
        shaders_of({"main": launched([Arg("x", (THREADS,))], body)})
