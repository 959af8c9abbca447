"""What became of every node, pass by pass: kept so small that it can be shipped with what was compiled."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from dspark_compiler.graph.printer import argument_text, arguments_text, operator_name, type_text
from dspark_compiler.graph.program import EntryPoint, Program, Role
from dspark_compiler.graph.remarks import Declined, Match

FORMAT = 1


@dataclass
class _Form:
    """How a node reads from step ``first`` to step ``last``."""

    first: int
    last: int
    operator: str
    arguments: str
    type: str


@dataclass
class _Row:
    """A node through time; ``seen`` is what its latest form was printed from."""

    name: str
    layer: int | None
    forms: list[_Form]
    seen: tuple[Any, ...]


@dataclass
class _Entry:
    """An entry point through time; ``order`` names its rows so that those of any one step stand in graph order."""

    kind: str
    batch: int
    width: int
    rows: dict[str, _Row] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


class History:
    """Watches a program as passes rewrite it: call ``record`` before the first and after each."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []
        self._entries: dict[str, _Entry] = {}

    def record(
        self, name: str, program: Program, matched: Sequence[Match] = (), declined: Sequence[Declined] = ()
    ) -> None:
        """Notes the program as step ``name`` left it, and what that says it did."""
        step = len(self._steps)
        self._steps.append(
            {
                "name": name,
                "matched": _grouped((match.what, match.entry, match.where) for match in matched),
                "declined": _grouped((one.reason, one.entry, one.where) for one in declined),
            }
        )
        for entry in program.entries.values():
            known = self._entries.setdefault(entry.name, _Entry(entry.kind.value, entry.batch, entry.width))
            _note(known, entry, step)

    def to_json(self) -> dict[str, Any]:
        """JSON types.

        ``steps`` are what was recorded, with matches and declines grouped by text: ``{text, entry, where: [...]}``.
        ``entries`` hold, by name, ``nodes``: ``[name, layer, [[first, last, operator, arguments, type], ...]]``, each
        form from step ``first`` to step ``last``. Values are ``%name``, params and states ``@name``.
        """
        return {
            "format": FORMAT,
            "steps": self._steps,
            "entries": {
                name: {
                    "kind": entry.kind,
                    "batch": entry.batch,
                    "width": entry.width,
                    "nodes": [_row_json(entry.rows[row]) for row in entry.order],
                }
                for name, entry in self._entries.items()
            },
        }


def _grouped(remarks: Iterable[tuple[str, str | None, str]]) -> list[dict[str, Any]]:
    places: dict[tuple[str, str | None], list[str]] = {}
    for text, entry, where in remarks:
        places.setdefault((text, entry), []).append(where)
    return [{"text": text, "entry": entry, "where": where} for (text, entry), where in places.items()]


def _row_json(row: _Row) -> list[Any]:
    forms = [[form.first, form.last, form.operator, form.arguments, form.type] for form in row.forms]
    return [row.name, row.layer, forms]


def _note(known: _Entry, entry: EntryPoint, step: int) -> None:
    names = {node: _name(node) for node in entry.graph.graph.nodes}
    for node, name in names.items():
        seen = (node.target, node.args, node.kwargs, node.meta.get("val"))
        row = known.rows.get(name)
        # A node keeps its tuples until something is put into them, and most nodes outlive most passes unchanged.
        if row is not None and all(one is other for one, other in zip(row.seen, seen, strict=True)):
            row.forms[-1].last = step
            continue
        form = _Form(step, step, *_printed(node, entry, names))
        if row is None:
            known.rows[name] = _Row(name, _layer(node, names, known.rows), [form], seen)
            continue
        row.seen = seen
        last = row.forms[-1]
        if (last.operator, last.arguments, last.type) == (form.operator, form.arguments, form.type):
            last.last = step
        else:
            row.forms.append(form)
    known.order = list(_merged(known.order, list(names.values())))


def _name(node: fx.Node) -> str:
    if node.op == "output":
        return "return"
    stored = node.op == "placeholder" and node.meta["role"] is not Role.INPUT
    return f"@{node.meta['ref']}" if stored else f"%{node.name}"


def _printed(node: fx.Node, entry: EntryPoint, names: Mapping[fx.Node, str]) -> tuple[str, str, str]:
    """Operator, arguments and type."""
    if node.op == "placeholder":
        return node.meta["role"].value, "", type_text(node.meta["val"])
    if node.op == "output":
        results = zip(entry.outputs, node.args[0], strict=True)  # type: ignore[arg-type]
        return "output", ", ".join(f"{name}={argument_text(result, names)}" for name, result in results), ""
    return operator_name(node), arguments_text(node, names), type_text(node.meta["val"])


def _layer(node: fx.Node, names: Mapping[fx.Node, str], rows: Mapping[str, _Row]) -> int | None:
    """The layer of the model a node belongs to, as its origin, its params and states, or its operands tell."""
    if node.op == "placeholder":
        return _number(node.meta["ref"]) if node.meta["role"] is not Role.INPUT else None
    if node.op == "output":
        return None
    modules = node.meta.get("nn_module_stack")
    if modules:
        return _number(next(reversed(modules.values()))[0])
    stored = [n for n in node.all_input_nodes if n.op == "placeholder" and n.meta["role"] is not Role.INPUT]
    numbers = [number for n in stored if (number := _number(n.meta["ref"])) is not None]
    if numbers:
        return max(numbers)
    if any(len(n.users) == 1 and n.meta["role"] is Role.PARAM for n in stored):
        return None  # a weight of its own, outside the layers: the last norm, the head
    operands = (rows[names[n]].layer for n in node.all_input_nodes if names[n] in rows)
    return max((layer for layer in operands if layer is not None), default=None)


def _number(path: str) -> int | None:
    """3 of ``model.layers.3.mlp.up_proj``."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def _merged(order: Sequence[str], now: Sequence[str]) -> Iterator[str]:
    """``order`` with what is new in ``now``, each new name behind the one it follows there."""
    old, passed = iter(order), set[str]()
    known = set(order)
    for name in now:
        if name in known and name not in passed:
            for earlier in old:
                passed.add(earlier)
                yield earlier
                if earlier == name:
                    break
        elif name not in known:
            yield name
    yield from old
