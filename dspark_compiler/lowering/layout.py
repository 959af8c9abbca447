"""Which physical form each weight and cache takes, decided from how the entry points use it."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import ml_dtypes
import numpy as np
import torch
from torch import fx

from dspark_compiler.config import DType
from dspark_compiler.graph.program import Program, Role
from dspark_compiler.schedules.attention_shape import key_cache_shape
from dspark_compiler.schedules.isa import VectorIsa
from dspark_compiler.schedules.linear_schedule import packed_shape

# A stored type, as compiled functions receive it: bfloat16 travels as the upper half of a float32's bits.
_KERNEL_DTYPE = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
# Likewise for a state whose type DLPack does not know from numpy.
_STATE_DTYPE = {torch.float8_e4m3fn: "uint8"}
_NUMPY_DTYPE = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class Form(StrEnum):
    """Physical form of a parameter."""

    PLAIN = "plain"  # as it is, in its own type
    PACKED = "packed"  # panels of schedules/linear.py, or such panels for each expert
    ROWS = "rows"  # [V, K] as it is, in the stored type, read a row at a time


@dataclass(frozen=True)
class PhysicalTensor:
    """Shape and dtype of an argument as the compiled function sees it."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class LayoutPlan:
    """Forms and stored types of parameters, physical tensors of parameters and states.

    ``stores`` names the types of those that are packed or read by rows.
    """

    isa: VectorIsa
    stores: dict[str, DType]
    forms: dict[str, Form]
    params: dict[str, PhysicalTensor]
    states: dict[str, PhysicalTensor]


def plan_layouts(program: Program, isa: VectorIsa, store: DType) -> LayoutPlan:
    """Matrix weights are packed and stored as ``store``; keys get panels of one vector's slots.

    Where float32 is asked for and bfloat16 holds every value, as for weights trained or shipped in it, that is what is
    stored: kernels widen it as they read, so results are the same bits from half the memory.
    """
    uses = _uses(program)
    forms = {name: _form(program.params[name], uses.get(name, set())) for name in program.params}
    stores = {name: _stored(program.params[name], store) for name, form in forms.items() if form is not Form.PLAIN}
    params = {name: _physical(tensor, forms[name], isa, stores.get(name)) for name, tensor in program.params.items()}
    states = {}
    for name, spec in program.states.items():
        shape = spec.shape
        if name.startswith("k_cache."):
            batch, kv_heads, slots, dim = shape
            shape = key_cache_shape(batch, kv_heads, slots, dim, isa)
        states[name] = PhysicalTensor(shape, _STATE_DTYPE.get(spec.dtype, dtype_name(spec.dtype)))
    return LayoutPlan(isa, stores, forms, params, states)


def physical_params(program: Program, plan: LayoutPlan) -> Iterator[tuple[str, np.ndarray]]:
    """Each parameter in its physical form, one at a time; bfloat16 as ml_dtypes.bfloat16."""
    for name, tensor in program.params.items():
        form = plan.forms[name]
        if form is Form.PLAIN:
            yield name, _plain_array(tensor)
            continue
        array = tensor.detach().to(torch.float32).numpy().astype(_NUMPY_DTYPE[plan.stores[name]])
        yield name, pack(array, plan.isa) if form is Form.PACKED else array


def pack(weight: np.ndarray, isa: VectorIsa) -> np.ndarray:
    """W [N, K] -> [ceil(N/P), K, P], zeros where the last panel reaches past N; each of W [E, N, K] likewise."""
    if weight.ndim == 3:
        return np.stack([pack(expert, isa) for expert in weight])
    features, depth = weight.shape
    panels, _, width = packed_shape(features, depth, isa)
    if panels * width != features:
        weight = np.concatenate([weight, np.zeros((panels * width - features, depth), weight.dtype)])
    return np.ascontiguousarray(weight.reshape(panels, width, depth).swapaxes(1, 2))


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


def _plain_array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _uses(program: Program) -> dict[str, set[str]]:
    """Parameter name -> kinds of use: "linear", "embedding" and "experts" as the weight, or "other"."""
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
    return "other"


def _form(tensor: torch.Tensor, uses: set[str]) -> Form:
    if uses == {"experts"}:
        return Form.PACKED
    if tensor.ndim != 2 or not tensor.is_floating_point() or not uses or uses & {"other", "experts"}:
        return Form.PLAIN
    return Form.PACKED if "linear" in uses else Form.ROWS


def _stored(tensor: torch.Tensor, store: DType) -> DType:
    if store == "float32" and torch.equal(tensor.to(torch.bfloat16).to(tensor.dtype), tensor):
        return "bfloat16"
    return store


def _physical(tensor: torch.Tensor, form: Form, isa: VectorIsa, store: DType | None) -> PhysicalTensor:
    if store is None:
        return PhysicalTensor(tuple(tensor.shape), dtype_name(tensor.dtype))
    shape = tuple(tensor.shape)
    if form is Form.PACKED:
        *experts, features, depth = shape
        shape = (*experts, *packed_shape(features, depth, isa))
    return PhysicalTensor(shape, _KERNEL_DTYPE[store])
