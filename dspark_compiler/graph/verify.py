"""What must hold of a program between passes; a pass that breaks it is stopped there and named."""

import operator
from collections.abc import Iterator
from functools import cache
from itertools import chain

from torch import Tensor, fx
from torch._ops import OpOverload

from dspark_compiler.errors import PassError
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role, TensorSpec
from dspark_compiler.graph.signature import entry_inputs
from dspark_compiler.graph.values import infer, spec_of

_NAMESPACES = ("aten", "dspark")


def verify(program: Program, stage: str) -> None:
    """Checks every entry point against the program and the conventions of docs/architecture.md.

    Args:
        program: what to check; it is not changed.
        stage: what has just been done to it, for the message ("after canonicalize").

    Raises:
        PassError: the first thing found wrong, naming stage, entry point and node.
    """
    for name, entry in program.entries.items():
        if name != entry.name:
            raise PassError(f"{stage}: {name}: the entry point calls itself {entry.name!r}")
        problem = next(_problems(program, entry), None)
        if problem is not None:
            raise PassError(f"{stage}: {name}: {problem}")


def _problems(program: Program, entry: EntryPoint) -> Iterator[str]:
    """Everything wrong with an entry point, each check trusting those before it."""
    yield from _structure(entry)
    yield from _placeholders(program, entry)
    yield from _inputs(entry, cached=bool(program.states), pruned=program.pruning is not None)
    for node in entry.graph.graph.nodes:
        if node.op == "call_function":
            yield from chain(_operator(node), _writes(node), _inferred(node))
    yield from _outputs(entry)


def _structure(entry: EntryPoint) -> Iterator[str]:
    """A well-formed graph: placeholders, then operators, then one output."""
    try:
        entry.graph.graph.lint()
    except RuntimeError as error:
        yield f"malformed graph: {str(error).splitlines()[0]}"
    order = {"placeholder": 0, "call_function": 1, "output": 2}
    last = 0
    for node in entry.graph.graph.nodes:
        if node.op not in order:
            yield f"{node.name}: a {node.op} node; only placeholders, operators and the output may be there"
        elif order[node.op] < last:
            yield f"{node.name}: a {node.op} node out of place"
        else:
            last = order[node.op]


def _placeholders(program: Program, entry: EntryPoint) -> Iterator[str]:
    """Each placeholder says what it stands for, and that agrees with the program."""
    seen: set[str] = set()
    for node in entry.graph.graph.nodes:
        if node.op != "placeholder":
            continue
        missing = [key for key in ("role", "ref", "val") if key not in node.meta]
        if missing:
            yield f"{node.name}: placeholder without meta {', '.join(missing)}"
        ref, role = node.meta["ref"], node.meta["role"]
        if ref in seen:
            yield f"{node.name}: a second placeholder for {ref}"
        seen.add(ref)
        yield from _static(node, node.meta["val"])
        if role is Role.PARAM and ref not in program.params:
            yield f"{node.name}: no param {ref}"
        elif role is Role.PARAM:
            param = program.params[ref]
            yield from _agrees(node, TensorSpec(tuple(param.shape), param.dtype))
        elif role is Role.STATE and ref not in program.states:
            yield f"{node.name}: no state {ref}"
        elif role is Role.STATE:
            yield from _agrees(node, program.states[ref])


def _agrees(node: fx.Node, spec: TensorSpec) -> Iterator[str]:
    found = spec_of(node)
    if found != spec:
        yield f"{node.name}: declared {_show(found)}, but {node.meta['ref']} is {_show(spec)}"


def _inputs(entry: EntryPoint, *, cached: bool, pruned: bool) -> Iterator[str]:
    """The inputs are those of the entry point's kind, in order."""
    if entry.kind in (EntryKind.PREFILL, EntryKind.EVICT) and entry.batch != 1:
        yield f"{entry.kind.value} works on one sequence, not {entry.batch}"
    found = {n.meta["ref"]: n for n in entry.placeholders(Role.INPUT)}
    # What one entry point makes and another takes is as wide as it was made.
    passed = {ref: spec_of(found[ref]) for ref in ("logits", "draft_probs") if ref in found}
    if entry.kind is EntryKind.ACCEPT and "logits" not in passed:
        yield "accept has no input logits"
        return
    expected = entry_inputs(entry.kind, entry.batch, entry.width, cached=cached, pruned=pruned, **passed)
    if list(found) != list(expected):
        yield f"inputs are {', '.join(found)}; must be {', '.join(expected)}"
    for ref, node in found.items():
        yield from _agrees(node, expected[ref])


def _operator(node: fx.Node) -> Iterator[str]:
    """The operator is one later stages may meet."""
    if isinstance(node.target, OpOverload):
        if node.target.namespace not in _NAMESPACES:
            yield f"{node.name}: operator {node.target} is neither aten nor dspark"
    elif node.target is not operator.getitem:
        yield f"{node.name}: {node.target} is not an operator overload"


def _writes(node: fx.Node) -> Iterator[str]:
    """States, and nothing else, are written, and only dspark operators touch them."""
    if isinstance(node.target, OpOverload):
        for place, name in _written(node.target):
            value = node.args[place] if place < len(node.args) else node.kwargs.get(name)
            if value is not None and not (isinstance(value, fx.Node) and value.meta.get("role") is Role.STATE):
                yield f"{node.name}: writes {value}, which is no state"
        if node.target.namespace == "dspark":
            return
    for operand in node.all_input_nodes:
        if operand.meta.get("role") is Role.STATE:
            yield f"{node.name}: reads state {operand} past the dspark operators"


@cache
def _written(target: OpOverload) -> tuple[tuple[int, str], ...]:
    """The arguments that an operator writes to: place and name."""
    arguments = enumerate(target._schema.arguments)
    return tuple((i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)


def _inferred(node: fx.Node) -> Iterator[str]:
    """The recorded value is static and what the operator makes of its arguments."""
    recorded = node.meta.get("val")  # an operator that returns nothing may have none
    yield from _static(node, recorded)
    try:
        value = infer(node)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        yield f"{node.name}: {node.target} rejects its arguments: {str(error).splitlines()[0]}"
        return
    if _specs(recorded) != _specs(value):
        yield f"{node.name}: recorded as {_show(*_specs(recorded))}, but yields {_show(*_specs(value))}"


def _static(node: fx.Node, value: object) -> Iterator[str]:
    leaves = value if isinstance(value, tuple | list) else (value,)
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if not all(type(size) is int for size in leaf.shape):
                yield f"{node.name}: shape {tuple(leaf.shape)} is not static"
        elif leaf is not None or node.op == "placeholder":
            yield f"{node.name}: yields {type(leaf).__name__}, not a tensor"


def _specs(value: object) -> tuple[TensorSpec, ...]:
    leaves = value if isinstance(value, tuple | list) else (value,)
    return tuple(TensorSpec(tuple(leaf.shape), leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor))


def _outputs(entry: EntryPoint) -> Iterator[str]:
    """A flat tuple, one tensor a name; logits have a row for each token, or in prefill one."""
    output = next(iter(reversed(entry.graph.graph.nodes)))
    results = output.args[0] if output.op == "output" else None
    if not isinstance(results, tuple | list):
        yield "the output is not a flat tuple"
        return
    if len(results) != len(entry.outputs):
        yield f"{len(results)} outputs for the names {', '.join(entry.outputs) or '(none)'}"
    for name, result in zip(entry.outputs, results, strict=True):
        if not isinstance(result, fx.Node) or not isinstance(result.meta["val"], Tensor):
            yield f"output {name} is {result}, not a tensor"
            continue
        shape = spec_of(result).shape
        rows = {1, entry.width} if entry.kind is EntryKind.PREFILL else {entry.width}
        if name == "logits" and not (len(shape) == 3 and shape[0] == entry.batch and shape[1] in rows):
            yield f"{result.name}: logits are {list(shape)}, not [{entry.batch}, {max(rows)}, vocabulary]"


def _show(*specs: TensorSpec) -> str:
    return ", ".join(f"{str(s.dtype).removeprefix('torch.')}{list(s.shape)}" for s in specs) or "nothing"
