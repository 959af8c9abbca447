"""Which physical form each weight and cache takes, decided from how the entry points use it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import ml_dtypes
import numpy as np
import torch
from torch import fx

from dspark_compiler.config import DType
from dspark_compiler.graph.program import Program, Role
from dspark_compiler.lowering.linear_call import LinearCall
from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.layouts import Layouts, PanelLayouts

# The type of a state that DLPack does not know from numpy, as compiled functions receive it.
_STATE_DTYPE = {torch.float8_e4m3fn: "uint8"}
_NUMPY_DTYPE = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class Form(StrEnum):
    """Physical form of a parameter."""

    PLAIN = "plain"  # as it is, in its own type
    PACKED = "packed"  # as the target's layouts pack it, or so for each expert
    ROWS = "rows"  # [V, K] as it is, in the stored type, read a row at a time
    CODES = "codes"  # of a quantized weight, as the target's layouts pack them
    SCALES = "scales"  # of one, likewise; in 16 bits where those hold them
    OFFSETS = "offsets"  # of one, likewise


_FACTORS = (Form.SCALES, Form.OFFSETS)


@dataclass(frozen=True)
class PhysicalTensor:
    """Shape and dtype of an argument as the compiled function sees it."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class LayoutPlan:
    """Forms and stored types of parameters, physical tensors of parameters and states.

    ``stores`` names the types of those that are packed or read by rows, ``formats`` the formats
    of codes and factors.
    """

    layouts: Layouts
    formats: dict[str, WeightFormat]
    stores: dict[str, DType]
    forms: dict[str, Form]
    params: dict[str, PhysicalTensor]
    states: dict[str, PhysicalTensor]

    def is_packed(self, param: fx.Node) -> bool:
        """Whether a weight, or the codes of one, lies as the target's layouts pack it; nothing computed does."""
        return self.forms.get(param.meta.get("ref", ""), Form.PLAIN) in (Form.PACKED, Form.CODES)

    @property
    def isa(self) -> VectorIsa:
        """Vector width of the CPU; only plans for one have it."""
        assert isinstance(self.layouts, PanelLayouts)
        return self.layouts.isa


def plan_layouts(program: Program, layouts: Layouts, store: DType) -> LayoutPlan:
    """Matrix weights are packed and stored as ``store``; states lie as the target wants them.

    Where float32 is asked for and bfloat16 holds every value, as for weights trained or shipped in it, that is what is
    stored on targets whose kernels widen it as they read: results are the same bits from half the memory.
    """
    uses = _uses(program)
    formats = _formats(program)
    forms = {name: _form(program.params[name], uses.get(name, set())) for name in program.params}
    stores = {
        name: _stored(program.params[name], store, layouts)
        for name, form in forms.items()
        if form in (Form.PACKED, Form.ROWS)
    }
    params = {
        name: _quantized_tensor(tensor, layouts, forms[name], formats[name])
        if forms[name] in (Form.CODES, *_FACTORS)
        else _physical(tensor, forms[name], layouts, stores.get(name))
        for name, tensor in program.params.items()
    }
    states = {
        name: PhysicalTensor(*layouts.state(name, spec.shape, _STATE_DTYPE.get(spec.dtype, dtype_name(spec.dtype))))
        for name, spec in program.states.items()
    }
    return LayoutPlan(layouts, formats, stores, forms, params, states)


def physical_params(program: Program, plan: LayoutPlan) -> Iterator[tuple[str, np.ndarray]]:
    """Each parameter in its physical form, one at a time; bfloat16 as ml_dtypes.bfloat16."""
    for name, tensor in program.params.items():
        form = plan.forms[name]
        if form is Form.PLAIN:
            yield name, _plain_array(tensor)
            continue
        if form is Form.CODES:
            yield name, plan.layouts.pack_codes(plan.formats[name], _bytes(tensor))
            continue
        if form in _FACTORS:
            exact = form is Form.SCALES and _is_half(tensor)
            yield name, plan.layouts.pack_factors(plan.formats[name], tensor.numpy(), exact)
            continue
        array = tensor.detach().to(torch.float32).numpy().astype(_NUMPY_DTYPE[plan.stores[name]])
        yield name, plan.layouts.pack(array) if form is Form.PACKED else array


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


def _plain_array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.uint8) if tensor.dtype is torch.float8_e4m3fn else tensor).numpy()


def _is_half(tensor: torch.Tensor) -> bool:
    """Whether float16 holds every value."""
    return torch.equal(tensor.half().float(), tensor)


def _quantized_tensor(tensor: torch.Tensor, layouts: Layouts, form: Form, kept_as: WeightFormat) -> PhysicalTensor:
    """Codes or factors of a format."""
    features, columns = tensor.shape
    if form in _FACTORS:
        exact = form is Form.SCALES and _is_half(tensor)
        return PhysicalTensor(*layouts.factors(kept_as, features, columns, exact))
    return PhysicalTensor(*layouts.codes(kept_as, features, columns))


def _formats(program: Program) -> dict[str, WeightFormat]:
    """The formats of quantized weights, by the names of their codes and factors."""
    calls = (LinearCall.of(node) for entry in program.entries.values() for node in entry.graph.graph.nodes)
    found = {}
    for call in calls:
        if call is not None and call.format is not None:
            found.update({param.meta["ref"]: call.format for param in (call.weight, *call.factors)})
    return found


def quantized_weights(program: Program) -> dict[str, int]:
    """How many weights are kept as codes, by the tags of their formats."""
    calls = (LinearCall.of(node) for entry in program.entries.values() for node in entry.graph.graph.nodes)
    tags = {call.weight.meta["ref"]: call.format.tag for call in calls if call is not None and call.format is not None}
    return dict(sorted(Counter(tags.values()).items()))


def _uses(program: Program) -> dict[str, set[str]]:
    """Parameter name -> kinds of use: "linear", "embedding", "experts", a part of a quantized weight, or "other"."""
    uses: dict[str, set[str]] = {}
    for entry in program.entries.values():
        for node in entry.placeholders(Role.PARAM):
            kinds = uses.setdefault(node.meta["ref"], set())
            kinds.update(_use(user, node) for user in node.users)
    return uses


def _use(user: fx.Node, param: fx.Node) -> str:
    args = user.args
    if user.target is torch.ops.aten.linear.default and args[1] is param and param not in (args[0], *args[2:]):
        return "linear"
    if user.target is torch.ops.aten.embedding.default and args[0] is param:
        return "embedding"
    if user.target is torch.ops.dspark.expert_linear.default and args[1] is param:
        return "experts"
    if user.target is torch.ops.dspark.quantized_linear.default and param in args[1:3]:
        return "codes" if args[1] is param else "scales"
    if user.target is torch.ops.dspark.quantized_linear.default and args[4] is param:
        return "offsets"
    if user.target is torch.ops.dspark.quantized_embedding.default and args[2] is not param:
        return "codes" if args[0] is param else "scales"
    return "other"


def _form(tensor: torch.Tensor, uses: set[str]) -> Form:
    if uses == {"experts"}:
        return Form.PACKED
    if uses in ({"codes"}, {"scales"}, {"offsets"}):
        return Form(next(iter(uses)))
    if tensor.ndim != 2 or not tensor.is_floating_point() or not uses or uses - {"linear", "embedding"}:
        return Form.PLAIN
    return Form.PACKED if "linear" in uses else Form.ROWS


def _stored(tensor: torch.Tensor, store: DType, layouts: Layouts) -> DType:
    if layouts.widens and store == "float32" and torch.equal(tensor.to(torch.bfloat16).to(tensor.dtype), tensor):
        return "bfloat16"
    return store


def _physical(tensor: torch.Tensor, form: Form, layouts: Layouts, store: DType | None) -> PhysicalTensor:
    if store is None:
        return PhysicalTensor(tuple(tensor.shape), dtype_name(tensor.dtype))
    shape = tuple(tensor.shape)
    if form is Form.PACKED:
        *experts, features, depth = shape
        shape = layouts.experts_shape(experts[0], features, depth) if experts else layouts.packed_shape(features, depth)
    return PhysicalTensor(shape, layouts.weight_dtype(store))
