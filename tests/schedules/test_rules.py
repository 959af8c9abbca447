import numpy as np
import pytest
import tvm
from tvm import relax

from dspark_compiler.schedules.apply import apply_schedules
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.search import searchable
from tests.schedules.kernels import MACHINES, WIDEST, build, normal
from tests.schedules.modules import lowered


def only(module: tvm.IRModule) -> tvm.tirx.PrimFunc:
    """The one function Relax generated."""
    (found,) = [f for f in module.functions.values() if isinstance(f, tvm.tirx.PrimFunc) and "s_tir" in f.attrs]
    return found


def scheduled(module: tvm.IRModule) -> tvm.IRModule:
    return apply_schedules(module, MACHINES[WIDEST], WIDEST)


@pytest.mark.parametrize(("rows", "depth"), [(4, 96), (3, 7), (1, 1), (64, 512)])
def test_elementwise_functions_become_one_vector_loop(rows: int, depth: int) -> None:
    function = only(scheduled(lowered(rows=rows, depth=depth)))
    text = function.script()
    assert text.count("T.writes(") == 1
    assert ("T.vectorized" in text) == (depth % 2 == 0)
    assert ("T.parallel" in text) == (rows * depth >= 16384)
    x, y, out = normal(rows, depth), normal(rows, depth, seed=1), np.zeros((rows, depth), np.float32)
    build(function)(x, y, out)
    np.testing.assert_allclose(out, x / (1 + np.exp(-x)) * y + x, rtol=1e-5, atol=1e-6)


def test_big_reductions_run_in_parallel() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((64, 512), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.sum(x, axis=-1)))
    function = only(scheduled(relax.transform.LegalizeOps()(builder.get())))
    assert "T.parallel(64)" in function.script().replace("T.int64(64)", "64")
    data, out = normal(64, 512), np.zeros(64, np.float32)
    build(function)(data, out)
    np.testing.assert_allclose(out, data.sum(-1), rtol=1e-4, atol=1e-4)


def test_the_module_given_stays_unscheduled_and_templates_stay_as_they_are() -> None:
    module = lowered(LinearWorkload(4, 40, 96))
    before = len(list(searchable(module)))
    result = scheduled(module)
    assert len(list(searchable(module))) == before == 1
    assert not list(searchable(result))
    tvm.ir.assert_structural_equal(module["linear"], result["linear"])
