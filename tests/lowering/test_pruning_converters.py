"""Entry points that keep, score and free slots, compiled whole and run against torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch import fx

import dspark_compiler.graph.ops  # noqa: F401  (defines the operators)
from dspark_compiler.backends.cpu import CpuBackend
from dspark_compiler.errors import LoweringError
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role, TensorSpec
from dspark_compiler.graph.rewrite import emit
from dspark_compiler.lowering.layout import LayoutPlan, plan_layouts
from dspark_compiler.lowering.nodes import effects
from dspark_compiler.lowering.relax import lower
from dspark_compiler.schedules.apply import apply_schedules
from dspark_compiler.schedules.layouts import PanelLayouts
from tests.schedules.kernels import WIDEST
from tests.schedules.stored import kernel_array
from tests.schedules.test_attention import panels

aten, dspark = torch.ops.aten, torch.ops.dspark

BATCH, HEADS, GROUPS, DIM, SLOTS, RING, SCRATCH = 2, 4, 2, 8, 21, 6, 3
# Layer 0 keeps float32, layer 1 e4m3.
_STATES = {
    "k_cache.0": (BATCH, GROUPS, SLOTS, DIM),
    "v_cache.0": (BATCH, GROUPS, SLOTS, DIM),
    "slot_position.0": (BATCH, GROUPS, SLOTS),
    "slot_score.0": (BATCH, GROUPS, SLOTS),
    "queries.0": (BATCH, HEADS, RING, DIM),
    "query_scratch.0": (BATCH, HEADS, SCRATCH, DIM),
    "score_scratch.0": (BATCH, GROUPS, SCRATCH, 1),
    "total.0": (BATCH, GROUPS, SLOTS),
    "k_cache.1": (BATCH, GROUPS, SLOTS, DIM),
    "v_cache.1": (BATCH, GROUPS, SLOTS, DIM),
    "k_scale.1": (BATCH, GROUPS, SLOTS),
    "v_scale.1": (BATCH, GROUPS, SLOTS),
    "slot_position.1": (BATCH, GROUPS, SLOTS),
}


class Entry:
    """Builds an entry point of a program over ``_STATES``, operator by operator."""

    def __init__(self, program: Program, name: str, **inputs: tuple[int, ...]) -> None:
        graph = fx.Graph()
        self._output = graph.output(())
        self.point = EntryPoint(name, EntryKind.COMMIT, BATCH, 1, fx.GraphModule({}, graph), ())
        self._output = next(iter(self.point.graph.graph.nodes))
        for ref, shape in inputs.items():
            dtype = torch.int32 if len(shape) == 1 else torch.float32
            self.point.add_placeholder(Role.INPUT, ref, TensorSpec(shape, dtype))
        self._program = program
        program.entries[name] = self.point

    def __getitem__(self, ref: str) -> fx.Node:
        """An input, or a state by its name, that of layer 0 unless it says another."""
        state = ref if "." in ref else f"{ref}.0"
        if state in self._program.states:
            return self.point.add_placeholder(Role.STATE, state, self._program.states[state])
        node = self.point.placeholder(ref)
        assert node is not None
        return node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return emit(self._output, target, args, kwargs)

    def done(self, *results: fx.Node) -> None:
        self._output.args = (results,)
        self.point.outputs = tuple(f"out{i}" for i in range(len(results)))


def _decode(program: Program) -> None:
    """Attention, besides writes that nothing reads; and a read of what attention has written."""
    one, row = (BATCH,), (BATCH, GROUPS, 1, DIM)
    rows = {"q": (BATCH, HEADS, 1, DIM), "k": row, "v": row, "score": (BATCH, GROUPS, 1, 1)}
    e = Entry(program, "decode", **rows, sequence=one, length=one, count=one, free=one, first=(1,))
    control = e["sequence"], e["length"], e["count"]
    e.call(dspark.append_queries.default, e["queries"], e["q"], *control)
    e.call(dspark.append_slot_scores.default, e["slot_score"], e["score"], *control, free=e["free"])
    tensors = (e[name] for name in ("q", "k", "v", "k_cache", "v_cache"))
    optional = {"free": e["free"], "slot_position": e["slot_position"]}
    out = e.call(dspark.append_attention.default, *tensors, *control, 0.3, 0, 0.0, None, **optional)
    e.done(out, e.call(dspark.read_state.default, e["v_cache"], e["first"]))


def _verify(program: Program) -> None:
    rows = {"q": (BATCH, HEADS, SCRATCH, DIM), "score": (BATCH, GROUPS, SCRATCH, 1)}
    e = Entry(program, "verify", **rows)
    e.call(dspark.write_scratch.default, e["query_scratch"], e["q"])
    e.call(dspark.write_scratch.default, e["score_scratch"], e["score"])
    e.done(e.call(aten.exp.default, e["score"]))


def _commit(program: Program) -> None:
    e = Entry(program, "commit", length=(BATCH,), accepted=(BATCH,), free=(BATCH,))
    e.call(dspark.commit_queries.default, e["queries"], e["query_scratch"], e["length"], e["accepted"])
    control = e["length"], e["accepted"], e["free"]
    e.call(dspark.commit_slot_scores.default, e["slot_score"], e["score_scratch"], *control)
    e.done()


def _evict(program: Program) -> None:
    """Reads, writes and reads one state, then frees slots by what it held, then reads what has moved."""
    e = Entry(program, "evict", sequence=(1,), length=(1,), free=(1,), need=(1,))
    sequence, length, free = e["sequence"], e["length"], e["free"]
    keys = e.call(dspark.read_keys.default, e["k_cache"], None, sequence)
    values = e.call(dspark.read_values.default, e["v_cache"], None, sequence)
    before = e.call(dspark.read_state.default, e["total"], sequence)
    norm = e.call(aten.sum.dim_IntList, e.call(aten.mul.Tensor, keys, values), [-1])
    total = e.call(aten.add.Tensor, before, norm)
    e.call(dspark.write_state.default, e["total"], total, sequence)
    written = e.call(dspark.read_state.default, e["total"], sequence)
    select = (e["slot_position"], sequence, length, free, e["need"], 2, 3)
    source = e.call(dspark.select_slots.default, written, *select)
    caches = e["k_cache"], e["v_cache"], e["slot_position"]
    e.call(dspark.compact_slots.default, *caches, source, sequence, slot_score=e["slot_score"])
    moved = e.call(dspark.read_keys.default, e["k_cache"], None, sequence)
    again = e.call(dspark.read_state.default, e["total"], sequence)
    e.call(dspark.write_state.default, e["total"], e.call(aten.mul.Tensor, again, again), sequence)
    e.done(keys, before, written, source, moved)


def _evict_quantized(program: Program) -> None:
    """Scores by attention and by logits, and frees slots of a quantized cache."""
    e = Entry(program, "evict_quantized", sequence=(1,), length=(1,), free=(1,), need=(1,), pending=(1,))
    sequence, length, free = e["sequence"], e["length"], e["free"]
    keys, position = (e["k_cache.1"], e["k_scale.1"]), e["slot_position.1"]
    scoring = {"last": 5, "scale": 0.3, "window": 40, "softcap": 5.0, "sinks": None}
    control = sequence, length, free
    mass = e.call(dspark.attention_mass.default, e["queries"], *keys, position, *control, e["pending"], **scoring)
    everything = e.call(dspark.attention_mass.default, e["queries"], *keys, position, *control, None, **scoring)
    queries = e.call(dspark.read_state.default, e["queries"], sequence)
    moments = e.call(dspark.logit_moments.default, queries, *keys, sequence, length, 0.3)
    values = e.call(dspark.read_values.default, e["v_cache.1"], e["v_scale.1"], sequence)
    score = e.call(aten.mul.Tensor, e.call(aten.sum.dim_IntList, values, [-1]), 2.0)
    source = e.call(dspark.select_slots.default, score, position, *control, e["need"], 1, 2)
    e.call(
        dspark.compact_slots.default,
        *(e["k_cache.1"], e["v_cache.1"], position, source, sequence),
        k_scale=e["k_scale.1"],
        v_scale=e["v_scale.1"],
    )
    e.done(mass, everything, moments, source)


class Model:
    """A compiled program and its torch twin over states of their own."""

    def __init__(self, program: Program, plan: LayoutPlan, library: Path) -> None:
        self._program, self._plan = program, plan
        self._machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
        rng = np.random.default_rng(0)
        self.states: dict[str, torch.Tensor] = {}
        for name, spec in program.states.items():
            self.states[name] = torch.from_numpy(rng.standard_normal(spec.shape, dtype=np.float32)).to(spec.dtype)
        for layer in range(2):
            self.states[f"slot_position.{layer}"][:] = torch.arange(100, 100 + SLOTS, dtype=torch.int32)
        self._device = {name: tvm.runtime.tensor(self._physical(name)) for name in self.states}

    def _physical(self, name: str) -> np.ndarray:
        array = kernel_array(self.states[name])
        return panels(array, self._plan.isa) if name.startswith("k_cache") else array

    def check(self, name: str, **inputs: np.ndarray) -> None:
        """Runs an entry point both ways; outputs and states must agree."""
        entry = self._program.entries[name]
        nodes = [n for n in entry.graph.graph.nodes if n.op == "placeholder"]
        given = {ref: torch.from_numpy(array) for ref, array in inputs.items()} | self.states
        before = {ref: self._physical(ref) for ref in self.states}
        expected = fx.Interpreter(entry.graph).run(*(given[n.meta["ref"]] for n in nodes))
        device = {ref: tvm.runtime.tensor(array) for ref, array in inputs.items()} | self._device
        order = [n for role in (Role.INPUT, Role.STATE) for n in entry.placeholders(role)]
        results = self._machine[name](*(device[n.meta["ref"]] for n in order))
        written = {state.meta["ref"] for node in entry.graph.graph.nodes for state in effects(node)}
        for result, tensor in zip(results, expected, strict=False):
            np.testing.assert_allclose(result.numpy(), tensor.numpy(), rtol=1e-5, atol=1e-5)
        for ref in self.states:
            np.testing.assert_allclose(self._device[ref].numpy(), self._physical(ref), rtol=1e-4, atol=1e-5)
        for ref in written:
            assert not np.array_equal(before[ref], self._physical(ref)), f"{name} writes nothing to {ref}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Model]:
    """Makes models over one compiled library."""
    program = Program({}, {}, {name: TensorSpec(shape, _dtype(name)) for name, shape in _STATES.items()})
    for build in (_decode, _verify, _commit, _evict, _evict_quantized):
        build(program)
    backend = CpuBackend()
    plan = plan_layouts(program, backend.layouts("float32"), "float32")
    library = tmp_path_factory.mktemp("lib") / "model.so"
    backend.build(apply_schedules(lower(program, plan), backend.target, backend.isa), library)
    return lambda: Model(program, plan, library)


def _dtype(state: str) -> torch.dtype:
    if "position" in state:
        return torch.int32
    return torch.float8_e4m3fn if state in ("k_cache.1", "v_cache.1") else torch.float32


def _int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def test_what_only_writes_stays_beside_outputs(model: Callable[[], Model]) -> None:
    control = {"sequence": _int32(1, 0), "length": _int32(130, 140), "count": _int32(1, 1), "free": _int32(10, 4)}
    new = {"q": _normal(BATCH, HEADS, 1, DIM), "k": _normal(BATCH, GROUPS, 1, DIM), "v": _normal(BATCH, GROUPS, 1, DIM)}
    model().check("decode", **new, score=_normal(BATCH, GROUPS, 1, 1), **control, first=_int32(1))


def test_what_is_not_confirmed_waits_in_scratch(model: Callable[[], Model]) -> None:
    m = model()
    m.check("verify", q=_normal(BATCH, HEADS, SCRATCH, DIM), score=_normal(BATCH, GROUPS, SCRATCH, 1))
    m.check("commit", length=_int32(3, 40), accepted=_int32(2, 3), free=_int32(9, 5))


@pytest.mark.parametrize("need", [1, 9])
def test_reads_and_writes_of_a_state_keep_their_order(model: Callable[[], Model], need: int) -> None:
    m = model()
    for sequence in (1, 0):
        m.check("evict", sequence=_int32(sequence), length=_int32(100 + SLOTS), free=_int32(0), need=_int32(need))


def test_a_quantized_cache_is_scored_and_freed(model: Callable[[], Model]) -> None:
    control = {"length": _int32(100 + SLOTS), "free": _int32(2), "need": _int32(8), "pending": _int32(4)}
    model().check("evict_quantized", sequence=_int32(1), **control)


def test_a_cache_no_kernel_reads_is_named() -> None:
    program = Program({}, {}, {"k_cache.0": TensorSpec((1, 1, 4, 4), torch.float16)})
    e = Entry(program, "evict", sequence=(1,))
    e.done(e.call(dspark.read_keys.default, e["k_cache"], None, e["sequence"]))
    with pytest.raises(LoweringError, match=r"the cache k_cache_0 is stored as torch.float16, not one of"):
        lower(program, plan_layouts(program, PanelLayouts(WIDEST), "float32"))


def test_scales_belong_to_a_quantized_cache() -> None:
    scaled = {"k_cache.0": TensorSpec((1, 1, 4, 4), torch.float32), "k_scale.0": TensorSpec((1, 1, 4), torch.float32)}
    program = Program({}, {}, scaled)
    e = Entry(program, "evict", sequence=(1,))
    e.done(e.call(dspark.read_keys.default, e["k_cache"], e["k_scale"], e["sequence"]))
    with pytest.raises(LoweringError, match=r"the cache k_cache_0: a quantized cache, and no other, has scales"):
        lower(program, plan_layouts(program, PanelLayouts(WIDEST), "float32"))
