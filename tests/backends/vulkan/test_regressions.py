"""What went wrong once, on some driver or in TVM."""

from typing import Any

import numpy as np
import tvm
from tvm import te
from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.tir import Arg, when
from tests.backends.vulkan.shaders import run, shaders_of, validate
from tests.backends.vulkan.test_kernels import THREADS, launched, only
from tests.vulkan.device import need_vulkan


def test_a_sign_extended_number_compares_as_what_it_is() -> None:
    """Lavapipe compared what SConvert gives with a constant as if it had no sign."""

    def body(thread: Any, x: Any, y: Any) -> None:
        wide = T.Bind(T.cast(x[thread], "int64") * T.int64(5))
        with when(wide < T.int64(40)):
            T.buffer_store(y, T.int32(1), [thread])

    function = launched([Arg("x", (THREADS,), "int32"), Arg("y", (THREADS,), "int32")], body)
    assert "OpSConvert" not in only(function).disassembly()
    need_vulkan()
    x = np.arange(THREADS, dtype="int32") - 20
    np.testing.assert_array_equal(run(function, x, np.zeros_like(x))[1], x * 5 < 40)


def test_indices_of_64_bits_need_no_such_integers() -> None:
    def body(thread: Any, x: Any, y: Any) -> None:
        index = T.cast(thread, "int64")
        T.buffer_store(y, x[index // T.int64(3) * T.int64(3) + T.int64(1)], [index])

    function = launched([Arg("x", (THREADS + 2,)), Arg("y", (THREADS,))], body)
    assert "int64" not in only(function).entry["features"]
    need_vulkan()
    x = np.arange(THREADS + 2, dtype="float32")
    expected = np.arange(THREADS) // 3 * 3 + 1
    np.testing.assert_array_equal(run(function, x, np.zeros(THREADS, "float32"))[1], expected)


def _row_sums(rows: int, threads: int) -> tvm.tirx.PrimFunc:
    """Sums of rows, an element a thread, by TVM's reduction over threads."""
    x = te.placeholder((rows, threads), name="x")
    k = te.reduce_axis((0, threads), "k")
    sums = te.compute((rows,), lambda i: te.sum(x[i, k], axis=k), name="sums")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([x, sums]))
    row, column = schedule.get_loops(schedule.get_sblock("sums"))
    schedule.bind(row, "blockIdx.x")
    schedule.bind(column, "threadIdx.x")
    return schedule.mod["main"]


def test_reductions_over_threads_are_shuffled_in_wide_subgroups() -> None:
    """TVM makes no shuffles for Vulkan by itself."""
    (shader,) = shaders_of({"main": _row_sums(4, 256)}, lanes=32)
    validate(shader)
    assert shader.disassembly().count("OpGroupNonUniformShuffleDown") == 8
    assert shader.disassembly().count("OpControlBarrier") == 2


def test_reductions_over_threads_count_on_no_lockstep_in_narrow_ones() -> None:
    """Subgroups of lavapipe have 8 invocations; for 1, which says nothing of them, the whole work group waits."""
    for lanes in (1, 8):
        (shader,) = shaders_of({"main": _row_sums(4, 256)}, lanes=lanes)
        validate(shader)
        need_vulkan()
        x = np.random.default_rng(0).standard_normal((4, 256)).astype("float32")
        found = run(_row_sums(4, 256), x, np.zeros(4, "float32"), lanes=lanes)[1]
        np.testing.assert_allclose(found, x.sum(axis=1), rtol=1e-5, atol=1e-5)
    text = shaders_of({"main": _row_sums(4, 256)}, lanes=1)[0].disassembly()
    assert "OpControlBarrier %uint_3" not in text  # none of a subgroup
