"""Memory of what launches hand on while they overlap, and of what only their own work groups exchange.

It has to be unset before a step, is published once, and belongs to one launch or two, so no plan may give it to others
in between: an entry point has one allocation for all of it, of which a single kernel unsets what has to be.
"""

from typing import Any

import tvm
from tvm import relax

from dspark_compiler.schedules.simt.awaited import AWAITS, COUNTS, EXCHANGES, PUBLISHES, UNSETS, unset

_PART_OF = "dspark.vulkan.part_of"  # of the runtime: tensor, bytes, shape, type -> a tensor within it
_ALIGNED = 256  # bytes
_WORD = 4


@tvm.transform.module_pass(opt_level=0, name="PlaceHandedOn")  # type: ignore[untyped-decorator]
def place_handed_on(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Gives each entry point the memory that its kernels hand on; comes after calls have been given their outputs."""
    for variable, function in list(module.functions.items()):
        if isinstance(function, relax.Function):
            _Placement(module, function).place(variable)
    # Without the kernels of single counters: what they did is done for all at once.
    left = {variable: function for variable, function in module.functions.items() if _used(module, variable)}
    return tvm.IRModule(left, attrs=module.attrs, global_infos=module.global_infos)


class _Placement:
    """One entry point, whose kernels are in ``module``."""

    def __init__(self, module: tvm.IRModule, function: Any) -> None:
        self._module, self._function = module, function
        self._bindings = [binding for block in function.body.blocks for binding in block.bindings]
        self._allocated = {b.var: b.value for b in self._bindings if _name(b.value) == "relax.builtin.alloc_tensor"}
        self._names = _other_names(self._bindings)

    def place(self, variable: Any) -> None:
        """Puts the function with its memory placed into the module, if it hands on anything."""
        published, awaited, counts, exchanged = map(self._arguments, (PUBLISHES, AWAITS, COUNTS, EXCHANGES))
        unset_before = [v for v in self._allocated if v in counts or (v in published and v in awaited)]
        if not unset_before:
            return
        offsets, unset_bytes = self._offsets(unset_before, 0)
        # Nobody waits for what only those read who stand behind a barrier; of its own it need wait for nobody either.
        own = [v for v in self._allocated if v in exchanged or (v in published and v not in awaited)]
        rest, size = self._offsets(own, unset_bytes)
        self._module.update_func(variable, self._rewritten(offsets | rest, unset_bytes, size))

    def _arguments(self, attribute: str) -> set[Any]:
        """Allocations that are arguments of this kind."""
        found = set()
        for call, kernel in self._calls():
            numbers = kernel.attrs.get(attribute) if kernel.attrs else None
            found |= {self._root(call.args[int(number)]) for number in numbers or ()}
        return found

    def _calls(self) -> list[tuple[Any, Any]]:
        calls = [binding.value for binding in self._bindings if isinstance(binding.value, relax.Call)]
        return [(call, self._module[call.op]) for call in calls if isinstance(call.op, tvm.ir.GlobalVar)]

    def _root(self, variable: Any) -> Any:
        while variable in self._names:
            variable = self._names[variable]
        return variable

    def _offsets(self, variables: list[Any], end: int) -> tuple[dict[Any, int], int]:
        """Where each begins, and where the last ends."""
        offsets = {}
        for variable in variables:
            offsets[variable] = end
            end += -(-_bytes(self._allocated[variable]) // _ALIGNED) * _ALIGNED
        return offsets, end

    def _rewritten(self, offsets: dict[Any, int], unset_bytes: int, size: int) -> Any:
        builder, bindings = relax.BlockBuilder(self._module), []

        def bind(name: str, value: Any) -> Any:
            value = builder.normalize(value)
            variable = relax.Var(name, value.ty)
            bindings.append(relax.VarBinding(variable, value))
            return variable

        words = size // _WORD
        storage = bind("handed_on", relax.op.memory.alloc_storage(relax.ShapeExpr([size]), 0, "global", "uint8"))
        allocation = relax.op.memory.alloc_tensor(storage, 0, relax.ShapeExpr([words]), "uint32")
        whole, dtype = bind("whole", allocation), allocation.args[3]
        first = bind("unset", _part(whole, 0, relax.ShapeExpr([unset_bytes // _WORD]), dtype))
        bind("_", relax.Call(self._unset(builder, unset_bytes // _WORD), [first]))
        for binding in self._bindings:
            if binding.var in offsets:
                value = builder.normalize(_part(whole, offsets[binding.var], *binding.value.args[:2]))
                bindings.append(relax.VarBinding(binding.var, value))
            elif not self._is_unset_already(binding.value):
                bindings.append(binding)
        body = relax.SeqExpr([relax.BindingBlock(bindings)], self._function.body.body)
        old = self._function
        return relax.Function(old.params, body, old.ret_ty, old.is_pure, old.attrs)

    def _unset(self, builder: relax.BlockBuilder, words: int) -> Any:
        variable = builder.add_func(unset(f"unset_{words}", words), f"unset_{words}")
        self._module[variable] = builder.get()[variable]
        return variable

    def _is_unset_already(self, value: Any) -> bool:
        if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.GlobalVar):
            return False
        kernel = self._module[value.op]
        return bool(kernel.attrs and UNSETS in kernel.attrs)


def _name(value: Any) -> str:
    """What a call calls, if it is one."""
    return str(getattr(value.op, "name", "")) if isinstance(value, relax.Call) else ""


def _other_names(bindings: list[Any]) -> dict[Any, Any]:
    """Variables that are but another name of a tensor, or another view of all of it."""
    names: dict[Any, Any] = {}
    for binding in bindings:
        value = binding.value
        if isinstance(value, relax.Var):
            names[binding.var] = value
        elif _name(value) == "relax.reshape":
            names[binding.var] = value.args[0]
        elif isinstance(value, relax.TupleGetItem):
            fields = next((b.value for b in bindings if b.var.same_as(value.tuple_value)), None)
            if isinstance(fields, relax.Tuple):
                names[binding.var] = fields.fields[value.index]
    return names


def _part(whole: Any, offset: int, shape: Any, dtype: Any) -> Any:
    """A tensor of its own in ``whole``, from so many bytes on."""
    args = [whole, tvm.tirx.IntImm("int64", offset), shape, dtype]
    return relax.Call(relax.ExternFunc(_PART_OF), args, ty_args=[relax.TensorType(shape, str(dtype.value))])


def _bytes(allocation: Any) -> int:
    """Of a tensor that is allocated."""
    count = 1
    for extent in allocation.args[0].values:
        count *= int(extent)
    return count * int(tvm.DataType(str(allocation.args[1].value)).bits) // 8


def _used(module: tvm.IRModule, kernel: Any) -> bool:
    """Whether an entry point calls a kernel that unsets; of other kernels always."""
    function = module[kernel]
    if not function.attrs or UNSETS not in function.attrs:
        return True
    entries = [f for f in module.functions.values() if isinstance(f, relax.Function)]
    bindings = [b for entry in entries for block in entry.body.blocks for b in block.bindings]
    return any(isinstance(b.value, relax.Call) and b.value.op == kernel for b in bindings)
