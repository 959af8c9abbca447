"""Operators of speculative rounds in entry points, compiled whole and run against torch."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch import fx

import dspark_compiler.graph.ops
import dspark_compiler.graph.sampling_ops  # noqa: F401  (both define operators)
from dspark_compiler.backends.cpu import CpuBackend
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role, TensorSpec
from dspark_compiler.graph.rewrite import emit
from dspark_compiler.lowering.layout import plan_layouts
from dspark_compiler.lowering.relax import lower
from dspark_compiler.schedules.apply import apply_schedules

aten, dspark = torch.ops.aten, torch.ops.dspark
F32, I32, I64 = torch.float32, torch.int32, torch.int64

BATCH, HEADS, GROUPS, DIM, PLACES, SPARE, WIDTH, VOCAB = 2, 4, 2, 8, 12, 4, 3, 40
_RING = TensorSpec((BATCH, GROUPS, PLACES, DIM), F32)
_KNOBS = {
    "temperature": TensorSpec((BATCH,), F32),
    "top_k": TensorSpec((BATCH,), I32),
    "top_p": TensorSpec((BATCH,), F32),
    "min_p": TensorSpec((BATCH,), F32),
}


class Entry:
    """Builds an entry point operator by operator; inputs and states by their names."""

    def __init__(self, program: Program, name: str, kind: EntryKind, **inputs: TensorSpec) -> None:
        graph = fx.Graph()
        self._output = graph.output(())
        self.point = EntryPoint(name, kind, BATCH, 1, fx.GraphModule({}, graph), ())
        self._output = next(iter(self.point.graph.graph.nodes))
        self.nodes = {ref: self.point.add_placeholder(Role.INPUT, ref, spec) for ref, spec in inputs.items()}
        for ref, spec in program.states.items():
            self.nodes[ref] = self.point.add_placeholder(Role.STATE, ref, spec)
        program.entries[name] = self.point

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Calls an operator; strings stand for inputs and states."""
        return emit(self._output, target, tuple(self.nodes[a] if isinstance(a, str) else a for a in args), kwargs)

    def done(self, *results: fx.Node) -> None:
        self._output.args = (results,)
        self.point.outputs = tuple(f"out{i}" for i in range(len(results)))


def _program() -> Program:
    """A prefill that writes rings of named sequences, a verify that writes all; a draft; two ways to accept."""
    program = Program({}, {}, {"ring.k": _RING, "ring.v": _RING})
    row = TensorSpec((BATCH,), I32)
    block = TensorSpec((BATCH, GROUPS, WIDTH, DIM), F32)
    e = Entry(program, "prefill", EntryKind.PREFILL, rows=block, length=row, sequence=row, count=row)
    e.call(dspark.write_ring.default, "rows", "ring.k", "length", "sequence", "count")
    e.call(dspark.write_ring.default, "rows", "ring.v", "length", e.nodes["sequence"])
    e.done(e.call(dspark.read_ring.default, "ring.k", "length", "sequence"))

    e = Entry(program, "verify", EntryKind.VERIFY, rows=block, length=row)
    before = e.call(dspark.read_ring.default, "ring.k", "length")
    e.call(dspark.write_ring.default, "rows", "ring.k", "length")
    after = e.call(dspark.read_ring.default, "ring.k", e.call(aten.add.Tensor, "length", 1))
    e.done(before, after)

    q, logits = TensorSpec((BATCH, HEADS, WIDTH, DIM), F32), TensorSpec((BATCH, 1, VOCAB), F32)
    uniform = TensorSpec((BATCH,), F32)
    inputs = {"q": q, "k": block, "v": block, "length": row, "logits": logits, "uniform": uniform}
    e = Entry(program, "draft", EntryKind.DRAFT, **inputs, **_KNOBS)
    context = e.call(dspark.block_attention.default, "q", "k", "v", "ring.k", "ring.v", "length", SPARE, 0.4)
    probs = e.call(dspark.token_probs.default, "logits", *_KNOBS)
    flat = e.call(aten.reshape.default, probs, (BATCH, VOCAB))
    e.done(context, probs, e.call(dspark.draw.default, flat, "uniform"))

    inputs = {
        "tokens": TensorSpec((BATCH, WIDTH), I64),
        "probs": TensorSpec((BATCH, WIDTH, VOCAB), F32),
        "count": row,
        "uniform": TensorSpec((BATCH, WIDTH), F32),
        "position": TensorSpec((BATCH,), I64),
        "length": row,
    }
    for drafts in ([], ["draft_probs"]):
        extra = {name: TensorSpec((BATCH, WIDTH + 1, VOCAB), F32) for name in drafts}
        e = Entry(program, f"accept{len(drafts)}", EntryKind.ACCEPT, **inputs, **extra)
        verdict = e.call(dspark.accept.default, *inputs, *drafts)
        e.done(*(e.call(operator.getitem, verdict, i) for i in range(4)))
    return program


class Model:
    """A compiled program and its torch twin over states of their own."""

    def __init__(self, program: Program, library: Path) -> None:
        self._program = program
        self._machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
        self.states = {name: torch.from_numpy(_normal(*spec.shape)) for name, spec in program.states.items()}
        self._device = {name: tvm.runtime.tensor(state.numpy()) for name, state in self.states.items()}

    def check(self, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
        """Runs an entry point both ways; outputs and states must agree."""
        entry = self._program.entries[name]
        nodes = [n for n in entry.graph.graph.nodes if n.op == "placeholder"]
        given = {ref: torch.from_numpy(array) for ref, array in inputs.items()} | self.states
        expected = fx.Interpreter(entry.graph).run(*(given[n.meta["ref"]] for n in nodes))
        device = {ref: tvm.runtime.tensor(array) for ref, array in inputs.items()} | self._device
        order = [n for role in (Role.INPUT, Role.STATE) for n in entry.placeholders(role)]
        results = [result.numpy() for result in self._machine[name](*(device[n.meta["ref"]] for n in order))]
        for result, tensor in zip(results, expected, strict=False):
            assert result.dtype == tensor.numpy().dtype
            np.testing.assert_allclose(result, tensor.numpy(), rtol=1e-5, atol=1e-5)
        for ref, state in self.states.items():
            np.testing.assert_array_equal(self._device[ref].numpy(), state.numpy())
        return results


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Model]:
    """Makes models over one compiled library."""
    program, backend = _program(), CpuBackend()
    library = tmp_path_factory.mktemp("lib") / "model.so"
    module = lower(program, plan_layouts(program, backend.layouts("float32"), "float32"))
    backend.build(apply_schedules(module, backend.target, backend.isa), library)
    return lambda: Model(program, library)


def _normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_rings_are_written_in_order(model: Callable[[], Model]) -> None:
    m, rows = model(), _normal(BATCH, GROUPS, WIDTH, DIM, seed=2)
    m.check("prefill", rows=rows, length=_int32(11, 0), sequence=_int32(1, 0), count=_int32(3, 2))
    before, after, *_ = m.check("verify", rows=-rows, length=_int32(2, 13))
    assert not np.array_equal(before, after)


def test_a_draft(model: Callable[[], Model]) -> None:
    block = {name: _normal(BATCH, GROUPS, WIDTH, DIM, seed=i) for i, name in enumerate("kv")}
    knobs = {"temperature": np.array([0.7, 0.0]), "top_p": np.array([0.8, 1.0]), "min_p": np.array([0.01, 0.0])}
    knobs = {name: value.astype(np.float32) for name, value in knobs.items()} | {"top_k": _int32(7, 0)}
    q, uniform = _normal(BATCH, HEADS, WIDTH, DIM, seed=4), np.array([0.4, 0.9], np.float32)
    logits = _normal(BATCH, 1, VOCAB, seed=5)
    model().check("draft", q=q, **block, length=_int32(30, 5), logits=logits, uniform=uniform, **knobs)


@pytest.mark.parametrize("drafts", [0, 1])
def test_acceptance(model: Callable[[], Model], drafts: int) -> None:
    probs = np.exp(_normal(BATCH, WIDTH, VOCAB))
    extra = {"draft_probs": np.exp(_normal(BATCH, WIDTH + 1, VOCAB, seed=2))} if drafts else {}
    probs /= probs.sum(-1, keepdims=True)
    for q in extra.values():
        q /= q.sum(-1, keepdims=True)
    uniform = np.random.default_rng(6).random((BATCH, WIDTH), dtype=np.float32)
    tokens = np.random.default_rng(7).integers(0, VOCAB, (BATCH, WIDTH))
    place = {"position": np.array([5, 900]), "length": _int32(5, 7)}
    count = _int32(2, -1)
    model().check(f"accept{drafts}", tokens=tokens, probs=probs, count=count, uniform=uniform, **place, **extra)
