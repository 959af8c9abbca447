"""Results that lie where the caller has room for them, so that nobody copies them there."""

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax

from dspark_compiler.schedules.simt.awaited import AWAITS

_PLACES = "dspark.destinations"  # of an entry point: which of its results have a parameter each, behind all others


def destinations(module: tvm.IRModule, entry: str) -> list[int]:
    """Which results of an entry point are written to parameters behind all others, in the order of these."""
    return [int(place) for place in module[entry].attrs.get(_PLACES) or ()]


@tvm.transform.module_pass(opt_level=0, name="GiveDestinations")  # type: ignore[untyped-decorator]
def give_destinations(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Has kernels that make nothing but a result of an entry point write it to a parameter behind all others.

    What kernels make besides, or make of it before they know it whole, stays memory of the entry point's.
    """
    for variable, function in list(module.functions.items()):
        if isinstance(function, relax.Function):
            module.update_func(variable, _given(module, function))
    return module


def _given(module: tvm.IRModule, function: Any) -> Any:
    entry = _Entry(module, function)
    places = entry.places()
    if not places:
        return function
    given = {made: relax.Var(f"result_{place}", entry.result(place).ty) for made, place in places.items()}
    builder = relax.BlockBuilder(module)
    body = relax.SeqExpr([_rewritten(builder, block, given) for block in function.body.blocks], function.body.body)
    made = relax.Function([*function.params, *given.values()], body, function.ret_ty, function.is_pure, function.attrs)
    return made.with_attr(_PLACES, [*places.values()])


class _Entry:
    """What one entry point binds."""

    def __init__(self, module: tvm.IRModule, function: Any) -> None:
        self._module = module
        self._values = {binding.var: binding.value for block in function.body.blocks for binding in block.bindings}
        returned = self._origin(function.body.body)
        value = self._values.get(returned)
        self._results = [*value.fields] if isinstance(value, relax.Tuple) else [returned]

    def result(self, place: int) -> Any:
        """A variable that is returned."""
        return self._results[place]

    def places(self) -> dict[Any, int]:
        """Variables that can lie where the caller says, each with the first result that is made there."""
        awaited = self._awaited()
        places: dict[Any, int] = {}
        for place, result in enumerate(self._results):
            made = self._made(result)
            if made not in awaited and _makes_one(self._values.get(made)):
                places.setdefault(made, place)
        return places

    def _made(self, variable: Any) -> Any:
        """What a variable is another view of, or itself."""
        variable = self._origin(variable)
        value: Any = self._values.get(variable)
        while _makes_one(value) and _is_view(self._module[value.args[0]]):
            variable = self._origin(value.args[1].fields[0])
            value = self._values.get(variable)
        return variable

    def _origin(self, variable: Any) -> Any:
        while isinstance(self._values.get(variable), relax.Var):
            variable = self._values[variable]
        return variable

    def _awaited(self) -> set[Any]:
        """What launches wait for, which is memory that is unset before each run."""
        found = set()
        for value in self._values.values():
            if not _calls_kernel(value):
                continue
            kernel, arguments = self._module[value.args[0]], value.args[1].fields
            numbers = kernel.attrs.get(AWAITS) if kernel.attrs else None
            found |= {self._made(arguments[int(number)]) for number in numbers or ()}
        return found


def _calls_kernel(value: Any) -> bool:
    return _name(value) in ("relax.call_tir", "relax.call_tir_inplace")


def _name(value: Any) -> str:
    """Of the operator that is called, if one is."""
    return str(getattr(value.op, "name", "")) if isinstance(value, relax.Call) else ""


def _is_view(kernel: Any) -> bool:
    """Whether a kernel is but a reshape, which becomes another view; templates, which have no such form, are not."""
    return type(kernel.body).__name__ == "SBlockRealize" and relax.analysis.has_reshape_pattern(kernel)


def _makes_one(value: Any) -> bool:
    """Whether it is a kernel's only output."""
    return _name(value) == "relax.call_tir" and isinstance(value.ty_args[0], relax.TensorType)


def _rewritten(builder: relax.BlockBuilder, block: Any, given: Mapping[Any, Any]) -> Any:
    bindings = []
    for binding in block.bindings:
        if binding.var in given:
            # A view of the same shape costs nothing either.
            view = relax.DataflowVar(given[binding.var].name, binding.var.ty)
            reshaped = builder.normalize(relax.op.reshape(given[binding.var], binding.var.ty.shape))
            made = builder.normalize(_into(view, binding.value))
            bindings += [relax.VarBinding(view, reshaped), relax.VarBinding(binding.var, made)]
        else:
            bindings.append(binding)
    return type(block)(bindings)


def _into(destination: Any, call: Any) -> Any:
    """The call with its output in a tensor that is there."""
    kernel, arguments = call.args[0], list(call.args[1].fields)
    return relax.op.call_tir_inplace(kernel, [*arguments, destination], [len(arguments)], [call.ty_args[0]])
