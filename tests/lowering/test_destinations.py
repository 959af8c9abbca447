"""Results that kernels make where callers have memory for them, on modules small enough to run by hand."""

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.tirx.script.builder import ir as T

from dspark_compiler.graph import draft_ops, ops, quantized_ops, sampling_ops  # noqa: F401 - define torch.ops.dspark
from dspark_compiler.lowering.destinations import destinations, give_destinations
from dspark_compiler.lowering.layout import plan_layouts
from dspark_compiler.lowering.relax import lower
from dspark_compiler.schedules.layouts import PanelLayouts
from dspark_compiler.schedules.simt.awaited import AWAITS
from dspark_compiler.schedules.simt.layouts import RowLayouts
from dspark_compiler.schedules.tir import Arg, Buffer, kernel
from tests.lowering.test_drafting import VULKAN
from tests.passes.test_attach_decode_heads import attached, make_heads
from tests.schedules.kernels import WIDEST
from tests.tiny_models import tiny

SIZE = 6
_ROW = relax.TensorType([SIZE], "float32")


def _twice(*, plus: float = 0.0) -> tvm.tirx.PrimFunc:
    """Kernel for y = 2 x + plus."""

    def body(x: Buffer, y: Buffer) -> None:
        with T.serial(0, SIZE) as i:
            T.buffer_store(y, x[i] * T.float32(2) + T.float32(plus), [i])

    return kernel("twice", [Arg("x", (SIZE,), "float32"), Arg("y", (SIZE,), "float32")], body)


class _Entry:
    """An entry point in the making, of one input."""

    def __init__(self) -> None:
        self.builder = relax.BlockBuilder()
        self.x = relax.Var("x", _ROW)

    def call(self, function: tvm.tirx.PrimFunc, name: str, x: Any) -> Any:
        variable = self.builder.add_func(function.without_attr("global_symbol"), name)
        return self.builder.emit(relax.call_tir(variable, [x], out_ty=_ROW))

    def module(self, make: Any) -> tvm.IRModule:
        with self.builder.function("main", [self.x], attrs={"num_input": 1}):
            with self.builder.dataflow():
                output = self.builder.emit_output(make(self))
            self.builder.emit_func_output(output)
        views = relax.transform.LegalizeOps()(self.builder.get())
        return give_destinations(views)


def _run(module: tvm.IRModule, shapes: list[tuple[int, ...]]) -> tuple[list[Any], list[Any]]:
    """What an entry point returns, and the memory that was given for it."""
    made = relax.build(relax.transform.RewriteDataflowReshape()(module), target="llvm")
    machine = relax.VirtualMachine(made, tvm.cpu())
    x = tvm.runtime.tensor(np.arange(SIZE, dtype=np.float32))
    given = [tvm.runtime.tensor(np.zeros(shape, np.float32)) for shape in shapes]
    result = machine["main"](x, *given)
    return ([result] if hasattr(result, "numpy") else list(result)), given


def test_a_result_is_made_in_the_memory_given() -> None:
    module = _Entry().module(lambda e: relax.Tuple([e.call(_twice(), "a", e.x), e.call(_twice(plus=1), "b", e.x)]))
    assert destinations(module, "main") == [0, 1]
    (first, second), given = _run(module, [(SIZE,), (SIZE,)])
    np.testing.assert_array_equal(first.numpy(), 2 * np.arange(SIZE))
    np.testing.assert_array_equal(second.numpy(), 2 * np.arange(SIZE) + 1)
    for made, place in zip((first, second), given, strict=True):
        np.testing.assert_array_equal(made.numpy(), place.numpy())


def test_a_view_of_what_a_kernel_makes_lies_there_too() -> None:
    def make(entry: _Entry) -> Any:
        made = entry.call(_twice(), "a", entry.x)
        return relax.Tuple([entry.builder.emit(relax.op.reshape(made, (2, SIZE // 2)))])

    module = _Entry().module(make)
    assert destinations(module, "main") == [0]
    (made,), (place,) = _run(module, [(2, SIZE // 2)])
    np.testing.assert_array_equal(place.numpy(), 2 * np.arange(SIZE, dtype=np.float32).reshape(2, -1))
    np.testing.assert_array_equal(made.numpy(), place.numpy())


def test_a_tensor_that_is_returned_twice_has_one_place() -> None:
    def make(entry: _Entry) -> Any:
        made = entry.call(_twice(), "a", entry.x)
        return relax.Tuple([entry.x, made, made])

    module = _Entry().module(make)
    assert destinations(module, "main") == [1]
    (x, first, second), (place,) = _run(module, [(SIZE,)])
    for each in (first, second, place):
        np.testing.assert_array_equal(each.numpy(), 2 * x.numpy())


def test_what_a_launch_awaits_stays_the_entry_points() -> None:
    def make(entry: _Entry) -> Any:
        made = entry.call(_twice(), "a", entry.x)
        waits = _twice(plus=1).with_attr(AWAITS, [0])
        return relax.Tuple([made, entry.call(waits, "b", made)])

    assert destinations(_Entry().module(make), "main") == [1]


@pytest.mark.parametrize("layouts", [RowLayouts("float16"), PanelLayouts(WIDEST)], ids=["vulkan", "cpu"])
def test_results_of_a_model(layouts: Any) -> None:
    program = attached(tiny("llama"), make_heads(tiny("llama"), "vanilla", head_dim=16), VULKAN)
    module = lower(program, plan_layouts(program, layouts, "float32"))
    found = {name: [entry.outputs[i] for i in destinations(module, name)] for name, entry in program.entries.items()}
    if isinstance(layouts, PanelLayouts):
        assert not any(found.values())
    else:
        assert {"decode": ["logits"], "verify_4": ["logits"], "commit": []}.items() <= found.items()
        assert {"probs", "confidence"} <= set(found["draft"])
