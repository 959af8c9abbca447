"""Cooperative matrices in SPIR-V: what a module says of them, and what it says where there are none."""

import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm.tirx.script.builder import ir as T

from dspark_compiler.backends.vulkan.spirv import numbers
from dspark_compiler.backends.vulkan.spirv.numbers import Capability, Op
from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.simt.threads import barrier, shared
from dspark_compiler.schedules.tir import Arg
from dspark_compiler.schedules.vulkan.matrices import FEW, SIDE, SUBGROUP, Matrices
from tests.backends.vulkan.shaders import Shader, run, shaders_of
from tests.backends.vulkan.test_kernels import launched
from tests.backends.vulkan.words import instructions, text_of
from tests.vulkan.device import function, need_vulkan

ARGS = [Arg("x", (SIDE, SIDE), "float16"), Arg("w", (SIDE, SIDE), "float16"), Arg("y", (SIDE, SIDE))]
LINE = SIDE + 8
OWN = SIDE * SIDE // SUBGROUP


def product(thread: Any, x: Any, w: Any, y: Any, stride: int = LINE, start: int = 0) -> None:
    """y = x w^T by one subgroup."""
    matrices = Matrices()
    tiles = shared(SIDE * LINE, "float16"), shared(SIDE * LINE, "float16")
    made = shared(SIDE * SIDE)
    left, right, sums = matrices.left(1), matrices.right(1), matrices.sums(1)
    row, first = T.Bind(thread * OWN // SIDE), T.Bind(thread * OWN % SIDE)
    for tile, source in zip(tiles, (x, w), strict=True):
        with T.vectorized(0, OWN) as e:
            T.buffer_store(tile, source[row, first + e], [row * LINE + first + e])
    barrier()
    matrices.load(left, 0, tiles[0], T.int32(start), stride)
    matrices.load(right, 0, tiles[1], T.int32(0), LINE)
    matrices.multiply(sums, 0, left, 0, right, 0)
    matrices.store(made, T.int32(0), SIDE, sums, 0)
    matrices.meet()
    with T.vectorized(0, OWN) as e:
        T.buffer_store(y, made[row * SIDE + first + e], [row, first + e])


def shader(body: Callable[..., None] = product) -> Shader:
    (made,) = shaders_of({"main": launched(ARGS, body, SUBGROUP)})
    return made


def operands(made: Shader, op: Op) -> list[tuple[int, ...]]:
    return [instruction.operands for instruction in instructions(made.code) if instruction.op == op]


def test_a_module_says_that_it_has_matrices() -> None:
    made = shader()
    capabilities = {number for (number,) in operands(made, Op.CAPABILITY)}
    assert {Capability.COOPERATIVE_MATRIX_KHR, Capability.VULKAN_MEMORY_MODEL} <= capabilities
    assert "SPV_KHR_cooperative_matrix" in [text_of(words) for words in operands(made, Op.EXTENSION)]
    ((_, model),) = operands(made, Op.MEMORY_MODEL)
    assert model == numbers.MEMORY_MODEL_VULKAN
    assert {"cooperative_matrix", "memory_model"} <= set(made.entry["features"])
    assert made.entry["subgroup"] == SUBGROUP


def test_matrices_are_of_a_subgroup_and_of_sixteen_lines() -> None:
    made = shader()
    constants = {result: value for _, result, value, *_ in operands(made, Op.CONSTANT)}
    floats = {result: width for result, width, *_ in operands(made, Op.TYPE_FLOAT)}
    types = {
        (floats[kind], *(constants[number] for number in rest))
        for _, kind, *rest in operands(made, Op.TYPE_COOPERATIVE_MATRIX_KHR)
    }
    subgroup = numbers.Scope.SUBGROUP
    assert types == {(16, subgroup, 16, 16, 0), (16, subgroup, 16, 16, 1), (32, subgroup, 16, 16, 2)}
    loads = operands(made, Op.COOPERATIVE_MATRIX_LOAD_KHR)
    assert [constants[layout] for _, _, _, layout, *_ in loads] == [0, 1], "A by rows, B by columns"
    assert [constants[stride] for *_, stride, _ in loads] == [LINE // 4] * 2, "in vectors of four"
    assert {access for *_, access in loads} == {numbers.NON_PRIVATE}
    assert len(operands(made, Op.COOPERATIVE_MATRIX_MUL_ADD_KHR)) == 1
    assert len(operands(made, Op.COOPERATIVE_MATRIX_STORE_KHR)) == 1


def test_matrices_of_few_columns() -> None:
    def body(thread: Any, x: Any, w: Any, y: Any) -> None:
        matrices, tile = Matrices(FEW), shared(SIDE * LINE, "float16")
        made = shared(SIDE * FEW)
        left, right, sums = matrices.left(1), matrices.right(1), matrices.sums(2)
        matrices.load(left, 0, tile, T.int32(0), LINE)
        matrices.load(right, 0, tile, T.int32(0), LINE)
        matrices.multiply(sums, 1, left, 0, right, 0)
        matrices.store(made, T.int32(0), FEW, sums, 1)
        matrices.meet()
        T.buffer_store(y, made[thread], [0, thread % SIDE])

    made = shader(body)
    constants = {result: value for _, result, value, *_ in operands(made, Op.CONSTANT)}
    types = [rest for _, _, *rest in operands(made, Op.TYPE_COOPERATIVE_MATRIX_KHR)]
    assert sorted([constants[number] for number in rest][1:] for rest in types) == [[16, 8, 1], [16, 8, 2], [16, 16, 0]]


def test_sums_are_added_as_wholes() -> None:
    def body(thread: Any, x: Any, w: Any, y: Any) -> None:
        matrices, made = Matrices(), shared(SIDE * SIDE)
        sums = matrices.sums(2)
        matrices.add(sums, 0, 1)
        matrices.store(made, T.int32(0), SIDE, sums, 0)
        matrices.meet()
        T.buffer_store(y, made[thread], [0, thread % SIDE])

    made = shader(body)
    ((kind, *_),) = operands(made, Op.F_ADD)
    assert kind in {result for result, *_ in operands(made, Op.TYPE_COOPERATIVE_MATRIX_KHR)}


def test_what_others_wrote_is_seen_behind_a_barrier() -> None:
    made = shader()
    constants = {result: value for _, result, value, *_ in operands(made, Op.CONSTANT)}
    barriers = operands(made, Op.CONTROL_BARRIER)
    assert [constants[scope] for scope, *_ in barriers] == [numbers.Scope.WORKGROUP, numbers.Scope.SUBGROUP]
    for _, _, semantics in barriers:
        assert constants[semantics] & numbers.MAKE_AVAILABLE_AND_VISIBLE == numbers.MAKE_AVAILABLE_AND_VISIBLE


def test_other_kernels_ask_for_nothing_of_it() -> None:
    def body(thread: Any, x: Any, w: Any, y: Any) -> None:
        tile = shared(SUBGROUP)
        T.buffer_store(tile, T.cast(x[0, thread % SIDE], "float32"), [thread])
        barrier()
        T.buffer_store(y, tile[thread], [0, thread % SIDE])

    made = shader(body)
    ((_, model),) = operands(made, Op.MEMORY_MODEL)
    assert model == numbers.MEMORY_MODEL_GLSL450
    capabilities = {number for (number,) in operands(made, Op.CAPABILITY)}
    assert not capabilities & {Capability.COOPERATIVE_MATRIX_KHR, Capability.VULKAN_MEMORY_MODEL}
    assert made.entry["subgroup"] == 0
    assert not {"cooperative_matrix", "memory_model"} & set(made.entry["features"])


def test_a_module_with_matrices_is_valid() -> None:
    tool = shutil.which("spirv-val")
    if tool is None:
        pytest.skip("needs spirv-val (Debian: spirv-tools)")
    options = ["--target-env", "vulkan1.2", "--scalar-block-layout", "-"]
    done = subprocess.run([tool, *options], input=shader().code, capture_output=True, check=False)
    text = (done.stdout + done.stderr).decode()
    if "Invalid opcode: 4456" in text or "Invalid capability operand: 6022" in text:
        pytest.skip("this spirv-val is older than SPV_KHR_cooperative_matrix")
    assert done.returncode == 0, text


def test_lines_begin_at_whole_vectors() -> None:
    with pytest.raises(LoweringError, match=r"kernel main\w*: lines of a matrix begin 26 numbers apart"):
        shader(lambda *given: product(*given, stride=26))


def test_elements_of_a_matrix_cannot_be_read() -> None:
    def body(thread: Any, x: Any, w: Any, y: Any) -> None:
        T.buffer_store(y, Matrices().sums(1)[0, thread], [0, thread % SIDE])

    with pytest.raises(LoweringError, match="an element of a matrix is read"):
        shader(body)


def test_a_device_multiplies_or_says_what_it_lacks() -> None:
    need_vulkan()
    random = np.random.default_rng(0)
    x, w = (random.standard_normal((SIDE, SIDE)).astype(np.float16) for _ in range(2))
    kernel = launched(ARGS, product, SUBGROUP)
    if function("has_matrices")(SIDE, 0):
        found = run(kernel, x, w, np.zeros((SIDE, SIDE), np.float32))[-1]
        exact = x.astype(np.float64) @ w.astype(np.float64).T
        assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max()
        return
    with pytest.raises(RuntimeError, match="needs cooperative_matrix, which the device lacks"):
        run(kernel, x, w, np.zeros((SIDE, SIDE), np.float32))
