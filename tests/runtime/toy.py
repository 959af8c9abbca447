"""A hand-made artifact with the calling convention of compiled models, and the same model in numpy.

The model: the next token's logits are a table's row for the last token, plus the last token's position in one column,
plus a weighted sum, over the sequence's cache slots, of another table's rows. So a wrong slot, length, position, count
or sequence shows in the logits. All values are small integers times 1/8: sums are exact in any order.
"""

import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from dspark_compiler.artifact import (
    ArtifactWriter,
    EntrySpec,
    KVInfo,
    Manifest,
    ModelInfo,
    NamedTensor,
    TargetInfo,
    TensorInfo,
)

V = 260  # 256 bytes, then the special tokens
BOS, EOS, USER, ASSISTANT = 256, 257, 258, 259
BATCH, SLOTS, VERIFY = 3, 48, 3
PREFILL = (4, 8)
CUDA_ARCH = "sm_90a"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tables() -> tuple[np.ndarray, np.ndarray]:
    """float32 [V,V] each; bytes that are lower-case letters or spaces are likelier than others."""
    rng = np.random.default_rng(5)
    table = rng.integers(-24, 24, (V, V)).astype(np.float32) / 8
    table[:, [*range(ord("a"), ord("z") + 1), ord(" ")]] += 4
    table -= 8 * np.eye(V, dtype=np.float32)  # or greedy text is one letter over and over
    return table, rng.integers(-4, 4, (V, V)).astype(np.float32) / 8


class Reference:
    """The toy model in numpy, one sequence at a time, without a cache."""

    def __init__(self) -> None:
        self.table, self.other = tables()

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        row = self.table[tokens[-1]].copy()
        row[0] += (len(tokens) - 1) / 8
        for slot, token in enumerate(tokens):
            row += self.other[token] * (slot % 3)
        return row

    def greedy(self, prompt: Sequence[int], count: int, eos: int | None = EOS) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens).argmax()))
            if tokens[-1] == eos:
                break
        return tokens[len(prompt) :]


def _prefill_kernel(width: int):
    from tvm.script import tirx as T

    @T.prim_func(private=True)
    def kernel(
        table: T.Buffer((V, V), "float32"),
        other: T.Buffer((V, V), "float32"),
        ids: T.Buffer((1, width), "int64"),
        positions: T.Buffer((1, width), "int64"),
        sequence: T.Buffer((1,), "int32"),
        length: T.Buffer((1,), "int32"),
        count: T.Buffer((1,), "int32"),
        cache: T.Buffer((BATCH, SLOTS), "int64"),
        out: T.Buffer((1, 1, V), "float32"),
    ):
        for i in range(width):
            if i < count[0]:
                cache[sequence[0], length[0] + i] = ids[0, i]
        for v in range(V):
            out[0, 0, v] = table[ids[0, count[0] - 1], v]
            if v == 0:
                out[0, 0, v] = out[0, 0, v] + T.Cast("float32", positions[0, count[0] - 1]) / T.float32(8)
            for j in range(SLOTS):
                if j < length[0] + count[0]:
                    out[0, 0, v] = out[0, 0, v] + other[cache[sequence[0], j], v] * T.Cast("float32", j % 3)

    return kernel


def _decode_kernel():
    from tvm.script import tirx as T

    @T.prim_func(private=True)
    def kernel(
        table: T.Buffer((V, V), "float32"),
        other: T.Buffer((V, V), "float32"),
        ids: T.Buffer((BATCH, 1), "int64"),
        positions: T.Buffer((BATCH, 1), "int64"),
        sequence: T.Buffer((BATCH,), "int32"),
        length: T.Buffer((BATCH,), "int32"),
        count: T.Buffer((BATCH,), "int32"),
        cache: T.Buffer((BATCH, SLOTS), "int64"),
        out: T.Buffer((BATCH, 1, V), "float32"),
    ):
        for b in range(BATCH):
            if count[b] > 0:
                cache[sequence[b], length[b]] = ids[b, 0]
            for v in range(V):
                out[b, 0, v] = table[ids[b, 0], v]
                if v == 0:
                    out[b, 0, v] = out[b, 0, v] + T.Cast("float32", positions[b, 0]) / T.float32(8)
                for j in range(SLOTS):
                    if j < length[b] + count[b]:
                        out[b, 0, v] = out[b, 0, v] + other[cache[sequence[b], j], v] * T.Cast("float32", j % 3)

    return kernel


def _verify_kernel():
    from tvm.script import tirx as T

    @T.prim_func(private=True)
    def kernel(
        table: T.Buffer((V, V), "float32"),
        other: T.Buffer((V, V), "float32"),
        ids: T.Buffer((BATCH, VERIFY), "int64"),
        positions: T.Buffer((BATCH, VERIFY), "int64"),
        length: T.Buffer((BATCH,), "int32"),
        cache: T.Buffer((BATCH, SLOTS), "int64"),
        scratch: T.Buffer((BATCH, VERIFY), "int64"),
        out: T.Buffer((BATCH, VERIFY, V), "float32"),
    ):
        for b, i in T.grid(BATCH, VERIFY):
            scratch[b, i] = ids[b, i]
            for v in range(V):
                out[b, i, v] = table[ids[b, i], v]
                if v == 0:
                    out[b, i, v] = out[b, i, v] + T.Cast("float32", positions[b, i]) / T.float32(8)
                for j in range(SLOTS):
                    if j < length[b]:
                        out[b, i, v] = out[b, i, v] + other[cache[b, j], v] * T.Cast("float32", j % 3)
                for k in range(VERIFY):
                    if k <= i:
                        out[b, i, v] = out[b, i, v] + other[ids[b, k], v] * T.Cast("float32", (length[b] + k) % 3)

    return kernel


def _commit_kernel():
    from tvm.script import tirx as T

    @T.prim_func(private=True)
    def kernel(
        length: T.Buffer((BATCH,), "int32"),
        accepted: T.Buffer((BATCH,), "int32"),
        cache: T.Buffer((BATCH, SLOTS), "int64"),
        scratch: T.Buffer((BATCH, VERIFY), "int64"),
    ):
        for b, i in T.grid(BATCH, VERIFY):
            if i < accepted[b]:
                cache[b, length[b] + i] = scratch[b, i]

    return kernel


_STATES = {"cache": TensorInfo((BATCH, SLOTS), "int64"), "scratch": TensorInfo((BATCH, VERIFY), "int64")}
_PARAMS = ("table", "other")


def _entries() -> dict[str, EntrySpec]:
    def step(kind: str, batch: int, width: int) -> EntrySpec:
        rows = [NamedTensor(name, (batch, width), "int64") for name in ("input_ids", "positions")]
        numbers = [NamedTensor(name, (batch,), "int32") for name in ("sequence", "length", "count")]
        logits = NamedTensor("logits", (batch, 1, V), "float32")
        return EntrySpec(kind, batch, width, (*rows, *numbers), ("cache",), _PARAMS, (logits,))

    rows = tuple(NamedTensor(name, (BATCH, VERIFY), "int64") for name in ("input_ids", "positions"))
    length, accepted = (NamedTensor(name, (BATCH,), "int32") for name in ("length", "accepted"))
    logits = NamedTensor("logits", (BATCH, VERIFY, V), "float32")
    return {
        **{f"prefill_{width}": step("prefill", 1, width) for width in PREFILL},
        "decode": step("decode", BATCH, 1),
        f"verify_{VERIFY}": EntrySpec("verify", BATCH, VERIFY, (*rows, length), tuple(_STATES), _PARAMS, (logits,)),
        "commit": EntrySpec("commit", BATCH, VERIFY, (length, accepted), tuple(_STATES), (), ()),
    }


def _function(builder, name: str, spec: EntrySpec, kernel) -> None:
    """Relax function of inputs, states, params around one in-place kernel (params first, then inputs and states)."""
    from tvm import relax

    shapes = {tensor.name: tensor for tensor in spec.inputs} | _STATES
    shapes |= dict.fromkeys(_PARAMS, TensorInfo((V, V), "float32"))
    names = [*(tensor.name for tensor in spec.inputs), *spec.states, *spec.params]
    variables = {n: relax.Var(n, relax.TensorType(shapes[n].shape, shapes[n].dtype)) for n in names}
    order = [*spec.params, *(tensor.name for tensor in spec.inputs), *spec.states]
    results = [*(shapes[state] for state in spec.states), *spec.outputs]
    inplace = [order.index(state) for state in spec.states] + [-1] * len(spec.outputs)
    with builder.function(name, list(variables.values()), attrs={"relax.force_pure": True}):
        call = relax.op.call_tir_inplace(
            builder.add_func(kernel, f"{name}_kernel"),
            [variables[n] for n in order],
            inplace_indices=inplace,
            out_ty=[relax.TensorType(item.shape, item.dtype) for item in results],
        )
        value = builder.emit(call)
        builder.emit_func_output(builder.emit(relax.TupleGetItem(value, len(results) - 1)))


@functools.cache
def library(extend: Callable[[object], None] = lambda builder: None, *, cuda: bool = False) -> bytes:
    """The compiled shared library; ``extend`` adds functions to its Relax builder."""
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    extend(builder)
    kernels = {"decode": _decode_kernel, f"verify_{VERIFY}": _verify_kernel, "commit": _commit_kernel}
    for name, spec in _entries().items():
        kernel = kernels[name]() if name in kernels else _prefill_kernel(spec.width)
        _function(builder, name, spec, kernel)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.so"
        if cuda:
            target, module = _cuda_target(), _on_one_thread(builder.get())
            with target:
                tvm.compile(module, target).export_library(str(path))
        else:
            tvm.compile(builder.get(), tvm.target.Target({"kind": "llvm"})).export_library(str(path))
        return path.read_bytes()


def _cuda_target():
    import tvm

    from dspark_compiler.backends import cuda_toolkit

    cuda_toolkit.prepare()
    return tvm.target.Target({"kind": "cuda", "arch": CUDA_ARCH}, host={"kind": "llvm", "mcpu": "x86-64-v3"})


def _on_one_thread(module):
    """The kernels for a GPU, of which they use one thread."""
    from tvm import tirx

    for variable, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc):
            body = function.body
            for tag in ("threadIdx.x", "blockIdx.x"):
                index = tirx.Var(tag[:5], "int32")
                thread = tirx.IterVar((0, 1), index, tirx.IterVar.ThreadIndex, tag)
                body = tirx.AttrStmt(thread, "thread_extent", 1, body)
            module[variable] = function.with_body(body).with_attr("tirx.is_scheduled", True)
    return module


def tokenizer() -> tokenizers.Tokenizer:
    """One token a byte, with the byte's value as id, and the special tokens; a text gets BOS in front."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    characters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(moved)}
    model = tokenizers.models.BPE(vocab={characters[byte]: byte for byte in range(256)}, merges=[])
    result = tokenizers.Tokenizer(model)
    result.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.decoder = tokenizers.decoders.ByteLevel()
    result.add_special_tokens(["<s>", "</s>", "<|user|>", "<|assistant|>"])
    result.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", BOS)])
    return result


def manifest(**changes: object) -> Manifest:
    """The toy's manifest, some fields changed."""
    import platform

    fields = {
        "compiler_version": "0.1.0",
        "tvm_version": "0.27.0.post1",
        "model": ModelInfo("toy", "ToyForCausalLM", "toy", V, V, 1, SLOTS, BOS, (EOS,)),
        "target": TargetInfo("cpu", "native", f"{platform.machine()}-unknown-linux-gnu"),
        "dtype": "float32",
        "max_seq_len": SLOTS,
        "max_batch": BATCH,
        "kv": KVInfo(SLOTS, "int64"),
        "entry_points": _entries(),
        "states": _STATES,
    }
    return Manifest(**(fields | changes))


def write(
    path: Path,
    *,
    text: bool = True,
    extra: dict[str, bytes | str] | None = None,
    code: bytes | None = None,
    cuda: bool = False,
    **changes: object,
) -> Path:
    """Writes the toy artifact; ``text`` adds the tokenizer files, ``extra`` more files by their paths."""
    import tvm

    runtimes = [Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so"]
    if cuda:
        from dspark_compiler.backends import cuda_toolkit

        runtimes += cuda_toolkit.runtime_libraries()
        changes = {"target": TargetInfo("cuda", CUDA_ARCH, manifest().target.triple)} | changes
    report = {"total_seconds": 1.5, "stages": {"capture": 1.0}, "passes": [{"name": "fold"}, {"name": "fuse"}]}
    files = {"report.json": json.dumps(report)}
    if text:
        files |= {
            "tokenizer.json": tokenizer().to_str(),
            "tokenizer_config.json": '{"bos_token": "<s>", "eos_token": {"content": "</s>"}}',
            "chat_template.jinja": CHAT_TEMPLATE,
        }
    with ArtifactWriter(path) as writer:
        writer.add_params(zip(_PARAMS, tables(), strict=True))
        writer.add_bytes("lib/model.so", code or library(cuda=cuda))
        for runtime in runtimes:
            writer.add_file(runtime, f"lib/{runtime.name}")
        for name, content in (files | (extra or {})).items():
            writer.add_bytes(name, content)
        return writer.finish(manifest(**changes))
