"""Runs a rewritten Program with torch: a plain stand-in for the runtime, one call an entry point."""

from dataclasses import asdict

import torch
from torch import Tensor, fx

from dspark_compiler.artifact import PruningInfo
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role
from dspark_compiler.runtime.slots import SlotAccount


class ProgramRunner:
    """Holds the states of a Program and how many tokens of each sequence are confirmed (``length``)."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.states = {ref: torch.zeros(spec.shape, dtype=spec.dtype) for ref, spec in program.states.items()}
        self.batch = self._one(EntryKind.DECODE).batch
        self.length = [0] * self.batch
        pruning = program.pruning
        self.account = None if pruning is None else SlotAccount(PruningInfo(**asdict(pruning)), self.batch)

    def run(self, name: str, **inputs: Tensor) -> dict[str, Tensor]:
        """Executes one entry point; states are written in place."""
        entry = self.program.entries[name]
        values = {Role.INPUT: inputs, Role.PARAM: self.program.params, Role.STATE: self.states}
        placeholders = [n for n in entry.graph.graph.nodes if n.op == "placeholder"]
        arguments = [values[n.meta["role"]][n.meta["ref"]] for n in placeholders]
        with torch.no_grad():
            results = fx.Interpreter(entry.graph).run(*arguments)
        for node, argument in zip(placeholders, arguments, strict=True):
            assert tuple(argument.shape) == tuple(node.meta["val"].shape), node
        return dict(zip(entry.outputs, results, strict=True))

    def prefill(self, sequence: int, tokens: list[int], pad: int = 0) -> Tensor:
        """Feeds a prompt in chunks, the last one padded; the last token's logits [V]."""
        entries = sorted((e for e in self._all(EntryKind.PREFILL)), key=lambda e: -e.width)
        logits = None
        while tokens:
            entry = next((e for e in entries if e.width <= len(tokens)), entries[-1])
            chunk, tokens = tokens[: entry.width], tokens[entry.width :]
            start = self.length[sequence]
            padded = chunk + [pad] * (entry.width - len(chunk))
            self._make_room(sequence, len(chunk), "evict_prompt")
            logits = self.run(
                entry.name,
                input_ids=torch.tensor([padded]),
                positions=_positions([start], entry.width),
                sequence=_int32([sequence]),
                length=_int32([start]),
                count=_int32([len(chunk)]),
                **self._free([sequence]),
            )["logits"]
            self._confirm(sequence, len(chunk))
        assert logits is not None
        return logits[0, -1]

    def decode(self, tokens: list[int | None]) -> Tensor:
        """One token a sequence (None leaves it alone); logits [B,V]."""
        entry = self._one(EntryKind.DECODE)
        count = [int(t is not None) for t in tokens]
        for row in range(self.batch):
            self._make_room(row, count[row])
        logits = self.run(
            entry.name,
            input_ids=torch.tensor([[t or 0] for t in tokens]),
            positions=_positions(self.length, 1),
            sequence=_int32(list(range(self.batch))),
            length=_int32(self.length),
            count=_int32(count),
            **self._free(),
        )["logits"]
        for row in range(self.batch):
            self._confirm(row, count[row])
        return logits[:, 0]

    def verify(self, tokens: list[list[int]]) -> Tensor:
        """Unconfirmed tokens, as many as the entry point is wide; logits [B,N,V]."""
        entry = next(e for e in self._all(EntryKind.VERIFY) if e.width == len(tokens[0]))
        inputs = {"input_ids": torch.tensor(tokens), "positions": _positions(self.length, entry.width)}
        for row in range(self.batch):
            self._make_room(row, int(self.length[row] > 0))
        return self.run(entry.name, **inputs, length=_int32(self.length), **self._free())["logits"]

    def commit(self, accepted: list[int]) -> None:
        """Confirms the first so many of the last verified tokens of each sequence."""
        for row in range(self.batch):
            self._make_room(row, accepted[row])
        self.run("commit", length=_int32(self.length), accepted=_int32(accepted), **self._free())
        for row in range(self.batch):
            self._confirm(row, accepted[row])

    def _make_room(self, row: int, count: int, entry: str = "evict") -> None:
        need = self.account.need(row, count) if self.account is not None and count else None
        if need is None:
            return
        values = (row, self.length[row], self.account.free[row], need, self.account.pending[row])
        inputs = dict(zip(("sequence", "length", "free", "need", "pending"), values, strict=True))
        name = entry if entry in self.program.entries else "evict"
        self.run(name, **{ref: _int32([int(value)]) for ref, value in inputs.items()})
        self.account.evicted(row, need)

    def _free(self, rows: list[int] | None = None) -> dict[str, Tensor]:
        if self.account is None:
            return {}
        return {"free": torch.from_numpy(self.account.free.copy())[slice(None) if rows is None else rows]}

    def _confirm(self, row: int, count: int) -> None:
        self.length[row] += count
        if self.account is not None:
            self.account.confirmed(row, count)

    def _all(self, kind: EntryKind) -> list[EntryPoint]:
        return [e for e in self.program.entries.values() if e.kind is kind]

    def draft(self, anchor: list[int], uniform: Tensor, temperature: float) -> dict[str, Tensor]:
        """A block behind each sequence's anchor: tokens, probs and perhaps confidence."""
        return self.run(
            "draft",
            anchor=torch.tensor(anchor),
            position=torch.tensor(self.length),
            length=_int32(self.length),
            uniform=uniform,
            **knobs(self.batch, temperature),
        )

    def _one(self, kind: EntryKind) -> EntryPoint:
        (entry,) = self._all(kind)
        return entry


def _int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _positions(starts: list[int], width: int) -> Tensor:
    return torch.tensor(starts)[:, None] + torch.arange(width)


def knobs(batch: int, temperature: float) -> dict[str, Tensor]:
    """Sampling inputs of ``draft`` and ``accept``: a temperature, and nothing else."""
    return {
        "temperature": torch.full((batch,), temperature),
        "top_k": _int32([0] * batch),
        "top_p": torch.ones(batch),
        "min_p": torch.zeros(batch),
    }
