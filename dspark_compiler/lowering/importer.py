"""FX to Relax: TVM's own converters for aten operators, ours for linear, norms, rows and attention."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from torch import fx
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from dspark_compiler.errors import LoweringError
from dspark_compiler.graph.program import EntryPoint, Program, Role
from dspark_compiler.lowering.epilogues import Epilogues, Gate, Residual
from dspark_compiler.lowering.layout import LayoutPlan, PhysicalTensor, dtype_name
from dspark_compiler.lowering.nodes import effects
from dspark_compiler.schedules.choice import choose_schedule
from dspark_compiler.schedules.database import Records
from dspark_compiler.schedules.linear_schedule import LinearWorkload
from dspark_compiler.schedules.linear_space import LinearSpace, Schedule

Converter = Callable[[fx.Node, "EntryImporter"], Any]
KernelTemplate = Callable[..., tvm.tirx.PrimFunc]
EpilogueLowering = Callable[[fx.Node, Residual | Gate, "EntryImporter"], Any]


@dataclass(frozen=True)
class TargetLowering:
    """What operators become on a target.

    Attributes:
        converters: by operator name, as TVM's importer spells names.
        find_fusions: what kernels of an entry point do besides their own operator.
        lower_epilogue: for a linear with what is done to its output.
        kernels: the templates that converters of all targets call, by name.
        linears: the schedules of packed products; None where there is nothing to choose.
        gives_destinations: whether results are made where callers have memory for them, from call to call the same.
    """

    converters: Mapping[str, Converter]
    find_fusions: Callable[[EntryPoint, LayoutPlan], Epilogues]
    lower_epilogue: EpilogueLowering
    kernels: Mapping[str, KernelTemplate]
    linears: LinearSpace | None = None
    gives_destinations: bool = True


class EntryImporter(ExportedProgramImporter):  # type: ignore[misc]
    """Imports the entry points of a program into one Relax module.

    Kernels are added once and shared by every node and entry point that needs the same one.

    Attributes:
        env: the value of each node that has been converted.
        prepared: what kernels made besides their own node's value, for a node that begins with it.
        scratch: tensors that kernels of the entry point hand on to each other, by name, as they were written last.
    """

    def __init__(
        self,
        program: Program,
        plan: LayoutPlan,
        target: "TargetLowering",
        records: Records | None = None,
    ) -> None:
        super().__init__()
        self._target = target
        self._records = records
        self.program = program
        self.plan = plan
        self.block_builder = relax.BlockBuilder()
        self.entry: EntryPoint | None = None
        self.fusions = Epilogues()
        self.prepared: dict[fx.Node, tuple[Any, ...]] = {}
        self.scratch: dict[str, Any] = {}
        self._kernels: dict[str, Any] = {}
        self._reshaped_from: dict[Any, Any] = {}
        self._state_of: dict[Any, fx.Node] = {}
        self._ours = set(target.converters)
        self.update_convert_map(dict(target.converters))

    def module(self) -> tvm.IRModule:
        """All entry points, imported."""
        for entry in self.program.entries.values():
            self._import(entry)
        return self.block_builder.get()

    def arguments(self, entry: EntryPoint) -> list[fx.Node]:
        """Placeholders in calling order: inputs, states, params."""
        return [node for role in (Role.INPUT, Role.STATE, Role.PARAM) for node in entry.placeholders(role)]

    def call(self, kernel: tvm.tirx.PrimFunc, args: Sequence[Any], out: PhysicalTensor) -> Any:
        """Calls a kernel that fills one fresh output."""
        return self.block_builder.emit(
            relax.call_tir(self.kernel(kernel), list(args), out_ty=relax.TensorType(out.shape, out.dtype))
        )

    def call_many(self, kernel: tvm.tirx.PrimFunc, args: Sequence[Any], outs: Sequence[PhysicalTensor]) -> list[Any]:
        """Calls a kernel that fills several fresh outputs."""
        types = [relax.TensorType(out.shape, out.dtype) for out in outs]
        result = self.block_builder.emit(relax.call_tir(self.kernel(kernel), list(args), out_ty=types))
        return [self.block_builder.emit(relax.TupleGetItem(result, i)) for i in range(len(outs))]

    def call_inplace(
        self, kernel: tvm.tirx.PrimFunc, args: Sequence[Any], written: Sequence[int], *outs: PhysicalTensor
    ) -> Any:
        """Calls a kernel that writes some of its arguments, and fills a fresh tensor for each of ``outs``.

        Whoever reads a written state or scratch tensor afterwards depends on this call: Relax knows no other order.
        Returns the first fresh tensor, or the first argument as written where there is none.
        """
        types = [relax.TensorType(out.shape, out.dtype) for out in outs] + [args[i].ty for i in written]
        indices = [*[-1] * len(outs), *written]
        call = relax.op.call_tir_inplace(self.kernel(kernel), list(args), indices, types)
        result = self.block_builder.emit(call)
        count = len(types)
        results = (
            [self.block_builder.emit(relax.TupleGetItem(result, i)) for i in range(count)] if count > 1 else [result]
        )
        for i, value in zip(written, results[count - len(written) :], strict=True):
            self._replace(args[i], value)
        return results[0]

    def template(self, name: str, *args: Any, **options: Any) -> tvm.tirx.PrimFunc:
        """The kernel that the target's template of that name makes.

        Raises:
            LoweringError: the target has none.
        """
        if name not in self._target.kernels:
            raise LoweringError(f"the operator {name} has no kernel for this target in this version")
        return self._target.kernels[name](*args, **options)

    def kernel(self, function: tvm.tirx.PrimFunc) -> Any:
        """The global variable of a kernel, added at first use; the name says all its parameters."""
        name = str(function.attrs["global_symbol"])
        if name not in self._kernels:
            self._kernels[name] = self.block_builder.add_func(function.without_attr("global_symbol"), name)
        return self._kernels[name]

    def linear_schedule(self, work: LinearWorkload) -> Schedule:
        """How to cut a packed product: as the records say, else the default."""
        assert self._target.linears is not None
        return choose_schedule(work, self._target.linears, self._records)

    def reshape(self, value: Any, shape: Sequence[int]) -> Any:
        """``value`` seen with another shape; going back to the shape it was made with costs nothing."""
        origin = self._reshaped_from.get(value, value)
        if tuple(int(s) for s in origin.ty.shape) == tuple(shape):
            return origin
        result = self.block_builder.emit(relax.op.reshape(origin, list(shape)))
        self._reshaped_from[result] = origin
        return result

    def _replace(self, before: Any, after: Any) -> None:
        """A state or scratch tensor as a call has written it."""
        for name, kept in self.scratch.items():
            if kept.same_as(before):
                self.scratch[name] = after
                return
        state = self._state_of[before]
        self.env[state] = after
        self._state_of[after] = state

    def _import(self, entry: EntryPoint) -> None:
        self.entry = entry
        self.env.clear()
        self.prepared.clear()
        self.scratch.clear()
        self._reshaped_from.clear()
        arguments = self.arguments(entry)
        variables = {node: relax.Var(node.name, self._type(node)) for node in arguments}
        self.env.update(variables)
        self._state_of = {variables[node]: node for node in entry.placeholders(Role.STATE)}
        with self.block_builder.function(entry.name, list(variables.values()), attrs={"num_input": len(arguments)}):
            with self.block_builder.dataflow():
                result = self._convert_nodes(entry)
                output = self.block_builder.emit_output(result)
            self.block_builder.emit_func_output(output)

    def _convert_nodes(self, entry: EntryPoint) -> Any:
        written: dict[fx.Node, None] = {}
        self.fusions = self._target.find_fusions(entry, self.plan)
        for node in entry.graph.graph.nodes:
            if node.op == "placeholder" or node in self.fusions.absorbed:
                continue
            if node in self.fusions.matches:
                self.env[node] = self._target.lower_epilogue(node, self.fusions.matches[node], self)
                continue
            if node.op == "output":
                values = [self.env[value] for value in node.args[0]]
                break
            self.env[node] = self._convert(node, entry)
            written.update(dict.fromkeys(effects(node)))
        # What only writes is returned behind the outputs, or Relax would take its call for dead.
        return relax.Tuple([*values, *(self.env[state] for state in written)])

    def _convert(self, node: fx.Node, entry: EntryPoint) -> Any:
        name = getattr(node.target, "__name__", str(node.target))
        converter = self.convert_map.get(name)
        if converter is None:
            raise LoweringError(
                f"{entry.name}: operator {node.target} (node {node.name}) has no lowering; "
                "please report it with the model's architecture"
            )
        try:
            return converter(node, self) if name in self._ours else converter(node)
        except LoweringError:
            raise
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError, IndexError) as error:
            raise LoweringError(
                f"{entry.name}: operator {node.target} (node {node.name}) cannot be lowered: {error}"
            ) from error

    def _type(self, node: fx.Node) -> Any:
        role, ref = node.meta["role"], node.meta["ref"]
        if role is Role.STATE:
            physical = self.plan.states[ref]
        elif role is Role.PARAM:
            physical = self.plan.params[ref]
        else:
            value = node.meta["val"]
            physical = PhysicalTensor(tuple(value.shape), dtype_name(value.dtype))
        return relax.TensorType(list(physical.shape), physical.dtype)
