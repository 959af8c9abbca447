"""A transformers causal language model becomes a cache-free ``Program``."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind
from transformers import PreTrainedModel

from dspark_compiler.config import NGRAM, CompileConfig
from dspark_compiler.errors import UnsupportedModelError
from dspark_compiler.frontend.layers import marked_layers
from dspark_compiler.frontend.quiet import quiet
from dspark_compiler.frontend.retrace import retrace
from dspark_compiler.frontend.rope import settled_rope
from dspark_compiler.frontend.seam import seam
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role
from dspark_compiler.models import family_of

INPUTS = ("input_ids", "positions")
OUTPUTS = ("logits",)

# Lengths to export with: not 1, which torch takes for a constant, and unlike each other.
_EXAMPLE_BATCH, _EXAMPLE_WIDTH = 2, 7

# The kinds of layer, in transformers' words, that a cache of keys and values serves.
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})

# What a model's own code and torch.export raise on a model that cannot be traced.
_CAPTURE_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, ArithmeticError)


@dataclass(frozen=True)
class _Shape:
    """What an entry point is called with."""

    name: str
    kind: EntryKind
    batch: int
    width: int


@dataclass(frozen=True)
class _Captured:
    """An exported graph, and what each of its placeholders stands for: a name, and the tensor if not an input."""

    exported: ExportedProgram
    refs: tuple[tuple[str, Tensor | None], ...]

    def fits(self, shape: _Shape) -> bool:
        """Whether every choice the model's code made while it was exported holds for ``shape`` too."""
        first_input = self.exported.graph_signature.user_inputs[0]
        sizes = next(n for n in self.exported.graph.nodes if n.name == first_input).meta["val"].shape
        lengths = {}
        for size, length in zip(sizes, (shape.batch, shape.width), strict=True):
            if not isinstance(size, torch.SymInt):
                if size != length:
                    return False
                continue
            lengths[size.node.expr] = length
        guards = [g.expr for size in sizes if isinstance(size, torch.SymInt) for g in size.node.shape_env.guards]
        # Guards over other symbols only say that both inputs have the same sizes.
        return all(bool(g.subs(lengths)) for g in guards if g.free_symbols <= lengths.keys())


class _CacheFree(nn.Module):
    """The model as a function of token ids and positions, int64 [b,S] each, to logits [b,S,V]."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        # With a padding mask at hand, transformers does not search positions for packed sequences.
        mask = torch.ones_like(input_ids)
        out = self.model(input_ids=input_ids, position_ids=positions, attention_mask=mask, use_cache=False)
        logits: Tensor = out.logits
        return logits


def capture(model: PreTrainedModel, config: CompileConfig) -> Program:
    """The entry points ``prefill_N``, ``decode`` and ``verify_N`` of ``model``, which is left as it was.

    Parameters and buffers go by their names in ``model``; tied ones share the first of their names. With decode heads
    the outputs of decoder layers are marked.

    Raises:
        UnsupportedModelError: names the module or operator that stopped the capture; the cause is chained.
    """
    text = model.config.get_text_config()
    _check_layer_types(model, getattr(text, "layer_types", None) or ())
    shapes = _shapes(config)
    max_seq_len = config.max_seq_len or text.max_position_embeddings
    program = Program(entries={}, params={})
    marks = nullcontext() if config.heads in (None, NGRAM) else marked_layers(model)
    family = family_of(model.config.model_type)
    with _named_failure(model), seam(model, family), settled_rope(model, max_seq_len), marks:
        captured = _export(model, _EXAMPLE_BATCH, _EXAMPLE_WIDTH, open_lengths=True)
        for shape in shapes:
            fitting = captured
            if not captured.fits(shape):  # a family that takes a length for a constant
                fitting = _export(model, shape.batch, shape.width, open_lengths=False)
            program.entries[shape.name] = _entry(fitting, shape, program.params)
    for entry in program.entries.values():
        _check_layers(model, entry, text.num_hidden_layers)
    return program


def _shapes(config: CompileConfig) -> list[_Shape]:
    prefills = [_Shape(f"prefill_{n}", EntryKind.PREFILL, 1, n) for n in sorted(set(config.chunk_widths))]
    return [
        *prefills,
        _Shape("decode", EntryKind.DECODE, config.max_batch, 1),
        *(_Shape(f"verify_{n}", EntryKind.VERIFY, config.max_batch, n) for n in config.verify_widths),
    ]


def _export(model: PreTrainedModel, batch: int, width: int, *, open_lengths: bool) -> _Captured:
    ids = torch.zeros(batch, width, dtype=torch.int64)
    positions = torch.arange(width).expand(batch, -1).contiguous()
    lengths = {0: Dim.AUTO, 1: Dim.AUTO} if open_lengths else {}
    with torch.no_grad(), quiet():
        exported = export(_CacheFree(model), (ids, positions), dynamic_shapes=(lengths, lengths), strict=False)
        if any(isinstance(n.target, OpOverload) and n.target._schema.is_mutable for n in exported.graph.nodes):
            exported = exported.run_decompositions({})  # leaves no operator that writes to its arguments
    outputs = exported.graph_signature.output_specs
    written = [_own_name(s.target) for s in outputs if s.kind is not OutputKind.USER_OUTPUT]
    if written:
        raise UnsupportedModelError(f"{type(model).__name__}: its forward pass writes to {', '.join(written)}")
    return _Captured(exported, _refs(model, exported))


def _refs(model: nn.Module, exported: ExportedProgram) -> tuple[tuple[str, Tensor | None], ...]:
    """For each placeholder the name and tensor it stands for."""
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    first_name: dict[int, str] = {}
    for name, tensor in named.items():
        first_name.setdefault(id(tensor), name)
    refs: list[tuple[str, Tensor | None]] = []
    inputs = iter(INPUTS)
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            refs.append((next(inputs), None))
        elif spec.kind is InputKind.CONSTANT_TENSOR and spec.target is not None:
            refs.append((spec.target, exported.constants[spec.target]))
        else:
            tensor = named[_own_name(spec.target)]
            refs.append((first_name[id(tensor)], tensor.detach()))
    return tuple(refs)


def _own_name(target: str | None) -> str:
    """The model's name for what the wrapper calls ``model.<name>``."""
    return (target or "").removeprefix("model.")


def _entry(captured: _Captured, shape: _Shape, params: dict[str, Tensor]) -> EntryPoint:
    """The entry point of ``shape``; the tensors it uses are added to ``params``."""
    example = torch.zeros(shape.batch, shape.width, dtype=torch.int64)
    traced = retrace(captured.exported, [example if t is None else t for _, t in captured.refs])
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    pairs = list(zip(placeholders, captured.refs, strict=True))
    # Inputs first, and no weight that nothing reads.
    for old, (ref, tensor) in sorted(pairs, key=lambda pair: pair[1][1] is not None):
        if tensor is not None and not old.users:
            continue
        if tensor is not None:
            ref = _add_param(params, ref, tensor, shape.name)
        new = graph.placeholder(ref.replace(".", "_"))
        new.meta.update(role=Role.INPUT if tensor is None else Role.PARAM, ref=ref, val=old.meta["val"])
        values[old] = new
    for old in traced.graph.nodes:
        if old.op == "call_function":
            values[old] = graph.node_copy(old, values.__getitem__)
        elif old.op == "output":
            graph.output(tuple(values[n] for n in old.args[0]))
        elif old.op != "placeholder":
            raise UnsupportedModelError(f"{shape.name}: {old.op} {old.target} ({_module_of(old)}) is not an operator")
    return EntryPoint(shape.name, shape.kind, shape.batch, shape.width, fx.GraphModule(nn.Module(), graph), OUTPUTS)


def _add_param(params: dict[str, Tensor], ref: str, tensor: Tensor, entry: str) -> str:
    """Adds ``tensor`` under ``ref``, or under a name of the entry's own where exports differ in a constant."""
    known = params.setdefault(ref, tensor)
    if known is tensor or (known.shape == tensor.shape and torch.equal(known, tensor)):
        return ref
    params[own := f"{entry}.{ref}"] = tensor
    return own


def _check_layer_types(model: nn.Module, layer_types: Sequence[str]) -> None:
    foreign = sorted(set(layer_types) - _LAYER_TYPES)
    if foreign:
        layer = next(i for i, kind in enumerate(layer_types) if kind in foreign)
        raise UnsupportedModelError(
            f"{type(model).__name__}: layer {layer} is of type {layer_types[layer]}; "
            f"only {', '.join(sorted(_LAYER_TYPES))} layers can be compiled"
        )


def _check_layers(model: nn.Module, entry: EntryPoint, num_layers: int) -> None:
    """Refuses a model whose layers remember a sequence in another way than by keys and values."""
    nodes = entry.graph.graph.find_nodes(op="call_function", target=torch.ops.dspark.attention.default)
    layers = sorted(n.args[3] for n in nodes)
    if layers == list(range(num_layers)):
        return
    missing = sorted(set(range(num_layers)) - set(layers))
    what = f"layers {missing[:4]} call no attention" if missing else "a layer calls attention twice"
    raise UnsupportedModelError(
        f"{type(model).__name__}: {what}; only models whose every layer attends once can be given a cache"
    )


@contextmanager
def _named_failure(model: nn.Module) -> Iterator[None]:
    """Turns what tracing raises into one line that names the module it came from."""
    try:
        yield
    except _CAPTURE_ERRORS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedModelError(
            f"{_failed_module(model, error)}: cannot be captured ({type(error).__name__}: {reason[0]})"
        ) from error


def _failed_module(model: nn.Module, error: BaseException) -> str:
    """The innermost module of ``model`` on the error's traceback, as ``name (class)``."""
    names = {id(module): name for name, module in model.named_modules()}
    found = type(model).__name__
    link: BaseException | None = error
    while link is not None:
        for frame, _ in traceback.walk_tb(link.__traceback__):
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and names.get(id(owner)):
                found = f"{names[id(owner)]} ({type(owner).__name__})"
        link = link.__cause__ or link.__context__
    return found


def _module_of(node: fx.Node) -> str:
    """The module a node was traced in, as far as it is known."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else "unknown module"
