"""One entry point's graph on its way from FX to ONNX."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from dspark_compiler.errors import LoweringError
from dspark_compiler.graph.program import EntryPoint, Role
from dspark_compiler.lowering.nodes import effects, shape_of
from dspark_compiler.lowering.onnx.expression import Value

CONTRIB = "com.microsoft"

Converter = Callable[[fx.Node, "Emitter"], Any]

# The domains and versions that all models import.
OPSETS = {"": 23, CONTRIB: 1}


@dataclass(frozen=True)
class Tensor:
    """What a node stands for: the elements of ``source``, seen as ``shape``, with axes 1 and 2 ``swapped`` or not.

    Neither a reshape nor the swap of heads and tokens becomes a node until someone needs the elements so.
    ``source_shape`` is the source's; ``shape`` the node's own.
    """

    source: Value
    source_shape: tuple[int, ...]
    shape: tuple[int, ...]
    swapped: bool = False

    @property
    def unswapped_shape(self) -> tuple[int, ...]:
        """The shape before the swap."""
        if not self.swapped:
            return self.shape
        first, second, third, *rest = self.shape
        return (first, third, second, *rest)


class Emitter:
    """Converts the nodes of one entry point; equal nodes are made once.

    Attributes:
        entry: what is converted.
        made: what each node that has been converted became; several for those that yield several.
    """

    def __init__(
        self, entry: EntryPoint, converters: Mapping[str, Converter], params: Mapping[str, ir.TensorProtocol]
    ) -> None:
        self.entry = entry
        self.made: dict[fx.Node, Any] = {}
        self._converters = converters
        self._params = params
        self._nodes: list[list[ir.Node]] = [[]]
        self._known: dict[Any, tuple[ir.Value, ...]] = {}
        self._initializers: dict[str, ir.Value] = {}
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._states: dict[str, tuple[ir.Value, fx.Node]] = {}
        self._counter = 0

    def graph(self) -> ir.Graph:
        """The whole entry point.

        Inputs are its inputs and states by name; outputs its outputs, and ``next.NAME`` for each state it writes, and
        for an output that is named as an input.

        Raises:
            LoweringError: an operator without a converter, naming entry point and node.
        """
        nodes = self.entry.graph.graph.nodes
        for node in nodes:
            if node.op == "placeholder":
                self.made[node] = self._placeholder(node)
            elif node.op == "output":
                for name, value in zip(self.entry.outputs, node.args[0], strict=True):
                    free = self.entry.placeholder(name) is None  # ONNX has one name for one value
                    self._name(name if free else f"next.{name}", self.get(value), shape_of(value))
            else:
                self.made[node] = self._convert(node)
        for ref, (given, node) in self._states.items():
            if (written := self.get(node)).value is not given:
                self._name(f"next.{ref}", written, shape_of(node))
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes[0],
            initializers=list(self._initializers.values()),
            opset_imports=OPSETS,
            name=self.entry.name,
        )
        graph.metadata_props["in_place"] = " ".join(self._in_place())
        return graph

    def op(self, name: str, *inputs: Value | None, dtype: ir.DataType, domain: str = "", **attributes: Any) -> Value:
        """A node with one output."""
        return self.ops(name, *inputs, dtypes=(dtype,), domain=domain, **attributes)[0]

    def ops(
        self,
        name: str,
        *inputs: Value | None,
        dtypes: Sequence[ir.DataType],
        domain: str = "",
        **attributes: Any,
    ) -> tuple[Value, ...]:
        """A node with several outputs."""
        values = [None if given is None else given.value for given in inputs]
        # What a branch makes is not seen outside of it.
        shared = len(self._nodes) == 1 and name != "If"
        key = (name, domain, tuple(map(id, values)), len(dtypes), repr(sorted(attributes.items()))) if shared else None
        made = self._known.get(key)
        if made is None:
            made = tuple(self._fresh(dtype) for dtype in dtypes)
            self._nodes[-1].append(
                ir.node(name, values, attributes, domain=domain, outputs=made, name=f"{name}.{self._counter}")
            )
            if shared:
                self._known[key] = made
        return tuple(Value(self, value, dtype) for value, dtype in zip(made, dtypes, strict=True))

    def branch(self, condition: Value, yes: Callable[[], Value], no: Callable[[], Value]) -> Value:
        """What one of two functions makes, of which only that one runs."""
        graphs, dtypes = [], []
        for make in (yes, no):
            self._nodes.append([])
            result = make()
            graphs.append(ir.Graph([], [result.value], nodes=self._nodes.pop(), name=self._fresh(result.dtype).name))
            dtypes.append(result.dtype)
        return self.op("If", condition, dtype=dtypes[0], then_branch=graphs[0], else_branch=graphs[1])

    def number(self, value: float, dtype: ir.DataType) -> Value:
        """A constant without axes."""
        return self.constant(np.asarray(value, dtype.numpy()))

    def numbers(self, values: Sequence[int]) -> Value:
        """A constant of one axis, int64."""
        return self.constant(np.asarray(values, np.int64))

    def constant(self, array: np.ndarray) -> Value:
        """A small constant that stands in the model itself."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = f"constant.{len(self._initializers)}"
            value = ir.val(
                name, ir.DataType.from_numpy(array.dtype), array.shape, const_value=ir.tensor(array, name=name)
            )
            self._initializers[name] = value
            self._known[key] = (value,)
        return Value(self, self._known[key][0], ir.DataType.from_numpy(array.dtype))

    def get(self, node: fx.Node) -> Value:
        """A node's value in the node's shape."""
        made = self.tensor(node)
        if not made.swapped or 1 in made.shape[1:3]:
            return made.source if made.source_shape == made.shape else made.source.reshape(*made.shape)
        value = made.source
        if made.source_shape != made.unswapped_shape:
            value = value.reshape(*made.unswapped_shape)
        return value.transpose(0, 2, 1, *range(3, len(made.shape)))

    def tensor(self, node: fx.Node) -> Tensor:
        """A node's value as it has been made."""
        made = self.made[node]
        assert isinstance(made, Tensor), f"{node} yields several tensors"
        return made

    def viewed(self, node: fx.Node, *shape: int) -> Value:
        """A node's value seen with another shape."""
        made = self.tensor(node)
        if made.swapped and 1 not in made.shape[1:3]:
            return self.get(node).reshape(*shape)
        return made.source if made.source_shape == shape else made.source.reshape(*shape)

    def by_token(self, node: fx.Node, *shape: int) -> Value:
        """The value of a node [b,H,S,D] with tokens before heads, [b,S,H,D], seen with a shape."""
        made = self.tensor(node)
        if made.swapped or 1 in made.shape[1:3]:
            return made.source if made.source_shape == shape else made.source.reshape(*shape)
        return self.get(node).transpose(0, 2, 1, 3).reshape(*shape)

    def tensor_of(
        self, node: fx.Node, value: Value, shape: Sequence[int] | None = None, *, swapped: bool = False
    ) -> Tensor:
        """What a converter returns: a value of the node's elements, in the node's own shape unless one is given."""
        own = shape_of(node)
        return Tensor(value, own if shape is None else tuple(shape), own, swapped)

    def write(self, state: fx.Node, value: Value) -> None:
        """From here on a state is this."""
        self.made[state] = Tensor(value, shape_of(state), shape_of(state))

    def _fresh(self, dtype: ir.DataType) -> ir.Value:
        self._counter += 1
        return ir.val(f"value.{self._counter}", dtype)

    def _placeholder(self, node: fx.Node) -> Tensor:
        ref, shape = node.meta["ref"], shape_of(node)
        dtype = ir.DataType.from_numpy(torch.empty(0, dtype=node.meta["val"].dtype).numpy().dtype)
        if node.meta["role"] is Role.PARAM:
            value = ir.val(ref, dtype, shape, const_value=self._params[ref])
            self._initializers[ref] = value
        else:
            value = ir.val(ref, dtype, shape)
            self._inputs.append(value)
        if node.meta["role"] is Role.STATE:
            self._states[ref] = (value, node)
        return Tensor(Value(self, value, dtype), shape, shape)

    def _name(self, name: str, value: Value, shape: tuple[int, ...]) -> None:
        """Makes a value an output of the graph; ONNX wants its name to be its own."""
        named = value.value
        if named.producer() is None or named in self._outputs:
            named = self._fresh(value.dtype)
            self._nodes[0].append(ir.node("Identity", [value.value], outputs=[named], name=f"Identity.{self._counter}"))
        named.name, named.shape = name, ir.Shape(shape)
        self._outputs.append(named)

    def _in_place(self) -> list[str]:
        """States that may be written where they are read: all who read one are done when the last node writes it."""
        found = []
        for ref, (given, node) in self._states.items():
            written = self.get(node).value
            writer = written.producer()
            if written is given or writer is None or writer.op_type not in _WRITING_IN_PLACE:
                continue
            before = _ancestors(writer)
            readers = [use.node for use in given.uses()]
            if all(reader is writer or (id(reader) in before and reader.op_type not in _VIEWS) for reader in readers):
                found.append(ref)
        return found

    def _convert(self, node: fx.Node) -> Any:
        name = _operator_name(node)
        converter = self._converters.get(name)
        if converter is None:
            raise LoweringError(
                f"{self.entry.name}: operator {node.target} (node {node.name}) has no ONNX form in this version; "
                "please report it with the model's architecture"
            )
        made = converter(node, self)
        if isinstance(made, Value):
            return self.tensor_of(node, made)
        assert made is not None or effects(node), f"{name} gave nothing"
        return made


# What computes where its first input lies if it is told to; what only looks at its input in another way.
_WRITING_IN_PLACE = ("ScatterND", "GroupQueryAttention")
_VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Identity")


def _operator_name(node: fx.Node) -> str:
    """aten.add.Tensor, dspark.rope.default, getitem."""
    return getattr(node.target, "__name__", "") if not hasattr(node.target, "_schema") else str(node.target)


def _ancestors(node: ir.Node) -> set[int]:
    """The nodes that run before another one, by identity."""
    found: set[int] = set()
    waiting = [node]
    while waiting:
        for value in waiting.pop().inputs:
            producer = None if value is None else value.producer()
            if producer is not None and id(producer) not in found:
                found.add(id(producer))
                waiting.append(producer)
    return found
