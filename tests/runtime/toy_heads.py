"""The toy model with heads: prompt lookup, or a drafter that knows the model's first table and nothing else.

Its accept is greedy, and takes a draft only if that is among what it was drawn from. With ``draws`` there is one for
plain steps too.
"""

import functools
from collections.abc import Callable
from pathlib import Path

from dspark_compiler.artifact import EntrySpec, HeadsInfo, NamedTensor, StepTime, StepTimes
from tests.runtime import toy
from tests.runtime.toy import BATCH, VERIFY, V

GAMMA = VERIFY - 1
TIMES = StepTimes(1.0, 0.1, (StepTime(VERIFY, 1.2),))


def _draft_kernel():
    from tvm.script import tirx as T

    @T.prim_func(private=True)
    def kernel(
        table: T.Buffer((V, V), "float32"),
        anchor: T.Buffer((BATCH,), "int64"),
        position: T.Buffer((BATCH,), "int64"),
        length: T.Buffer((BATCH,), "int32"),
        ids: T.Buffer((BATCH, GAMMA + 1), "int64"),
        positions: T.Buffer((BATCH, GAMMA + 1), "int64"),
        same: T.Buffer((BATCH,), "int32"),
        probs: T.Buffer((BATCH, GAMMA, V), "float32"),
        confidence: T.Buffer((BATCH, GAMMA), "float32"),
    ):
        for b in range(BATCH):
            ids[b, 0] = anchor[b]
            same[b] = length[b]
            for i in range(GAMMA + 1):
                positions[b, i] = position[b] + T.Cast("int64", i)
            for i in range(GAMMA):
                ids[b, i + 1] = T.int64(0)
                confidence[b, i] = T.float32(4)
                for v in range(V):
                    if table[ids[b, i], v] > table[ids[b, i], ids[b, i + 1]]:
                        ids[b, i + 1] = T.Cast("int64", v)
                for v in range(V):
                    probs[b, i, v] = T.Cast("float32", ids[b, i + 1] == T.Cast("int64", v))

    return kernel


def _accept_kernel(width: int):
    from tvm.script import tirx as T

    @T.prim_func(private=True)
    def kernel(
        ids: T.Buffer((BATCH, width), "int64"),
        logits: T.Buffer((BATCH, width, V), "float32"),
        count: T.Buffer((BATCH,), "int32"),
        uniform: T.Buffer((BATCH, width), "float32"),
        position: T.Buffer((BATCH,), "int64"),
        length: T.Buffer((BATCH,), "int32"),
        q: T.Buffer((BATCH, GAMMA, V), "float32"),
        accepted: T.Buffer((BATCH,), "int32"),
        following: T.Buffer((BATCH,), "int64"),
        next_position: T.Buffer((BATCH,), "int64"),
        next_length: T.Buffer((BATCH,), "int32"),
    ):
        best = T.alloc_buffer((BATCH, width), "int64", scope="local")
        for b in range(BATCH):
            accepted[b] = 0
            for i in range(width):
                best[b, i] = T.int64(0)
                for v in range(V):
                    if logits[b, i, v] > logits[b, i, best[b, i]]:
                        best[b, i] = T.Cast("int64", v)
            for i in range(width - 1):
                drawn = q[b, i, ids[b, i + 1]] > T.float32(0) and uniform[b, i] < T.float32(1)
                if accepted[b] == i and i < count[b] and ids[b, i + 1] == best[b, i] and drawn:
                    accepted[b] = i + 1
            following[b] = best[b, accepted[b]]
            accepted[b] = T.Select(count[b] < 0, 0, accepted[b] + 1)
            next_position[b] = position[b] + T.Cast("int64", accepted[b])
            next_length[b] = length[b] + accepted[b]

    return kernel


def _entries(drafter: bool, draws: bool) -> dict[str, EntrySpec]:
    real = [NamedTensor(name, (BATCH,), "float32") for name in ("temperature", "top_p", "min_p")]
    numbers = (real[0], NamedTensor("top_k", (BATCH,), "int32"), *real[1:])
    probs = NamedTensor("draft_probs", (BATCH, GAMMA, V), "float32")
    place = (NamedTensor("position", (BATCH,), "int64"), NamedTensor("length", (BATCH,), "int32"))
    verdict = NamedTensor("accepted", (BATCH,), "int32"), NamedTensor("next", (BATCH,), "int64"), *place
    entries = {}
    for width in (1, VERIFY) if draws else (VERIFY,):
        accept = (
            NamedTensor("tokens", (BATCH, width), "int64"),
            NamedTensor("logits", (BATCH, width, V), "float32"),
            NamedTensor("count", (BATCH,), "int32"),
            NamedTensor("uniform", (BATCH, width), "float32"),
            *place,
            *numbers,
            *([probs] if drafter and width > 1 else []),
        )
        entries[f"accept_{width}"] = EntrySpec("accept", BATCH, width, accept, (), (), verdict)
    if not drafter:
        return entries
    draft = (
        NamedTensor("anchor", (BATCH,), "int64"),
        *place,
        NamedTensor("uniform", (BATCH, GAMMA), "float32"),
        *numbers,
    )
    outputs = (
        NamedTensor("input_ids", (BATCH, GAMMA + 1), "int64"),
        NamedTensor("positions", (BATCH, GAMMA + 1), "int64"),
        place[1],
        NamedTensor("probs", (BATCH, GAMMA, V), "float32"),
        NamedTensor("confidence", (BATCH, GAMMA), "float32"),
    )
    return entries | {"draft": EntrySpec("draft", BATCH, GAMMA, draft, (), ("table",), outputs)}


def _extend(builder, drafter: bool, draws: bool) -> None:
    from tvm import relax

    uses = {
        "draft": ("table", "anchor", "position", "length"),
        "accept": ("tokens", "logits", "count", "uniform", "position", "length", "draft_probs"),
    }
    for name, spec in _entries(drafter, draws).items():
        variables = {t.name: relax.Var(t.name, relax.TensorType(t.shape, t.dtype)) for t in spec.inputs}
        variables |= {p: relax.Var(p, relax.TensorType((V, V), "float32")) for p in spec.params}
        with builder.function(name, list(variables.values()), attrs={"relax.force_pure": True}):
            sure = relax.op.ones((BATCH, GAMMA, V), "float32")
            arguments = [variables[use] if use in variables else builder.emit(sure) for use in uses[spec.kind]]
            types = [relax.TensorType(output.shape, output.dtype) for output in spec.outputs]
            kernel = builder.add_func(
                _draft_kernel() if name == "draft" else _accept_kernel(spec.width), f"{name}_kernel"
            )
            builder.emit_func_output(builder.emit(relax.call_tir(kernel, arguments, out_ty=types)))


@functools.cache
def _extension(drafter: bool, draws: bool) -> Callable[[object], None]:
    return functools.partial(_extend, drafter=drafter, draws=draws)


def write(
    path: Path,
    *,
    drafter: bool,
    draws: bool = False,
    times: StepTimes | None = TIMES,
    cuda: bool = False,
    **changes: object,
) -> Path:
    """Writes the toy artifact with heads."""
    kind = "dspark" if drafter else "ngram"
    heads = HeadsInfo(kind, f"toy-{kind}", GAMMA, confidence=drafter, times=times)
    entries = toy.manifest().entry_points | _entries(drafter, draws)
    return toy.write(
        path,
        code=toy.library(_extension(drafter, draws), cuda=cuda),
        cuda=cuda,
        entry_points=entries,
        heads=heads,
        **changes,
    )
