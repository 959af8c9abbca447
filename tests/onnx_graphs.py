"""Small ONNX decoders written by hand, one a dialect, for tests: random weights, vocabulary 61, two layers.

Each value of ``DIALECTS`` writes its graph through a ``Writer``; ``build`` saves it, with the weights inside.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCAB, HIDDEN, INNER, LAYERS, HEADS, GROUPS, SIZE, POSITIONS = 61, 32, 48, 2, 4, 2, 16, 64
CONTRIB = "com.microsoft"


class Writer:
    """Nodes and constants in order; values are names."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._random = np.random.default_rng(5)

    def op(
        self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", name: str | None = None, **attrs: Any
    ) -> Any:
        names = [f"{operator}_{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        node = helper.make_node(
            operator, list(inputs), names, name=name or f"{operator}_{len(self.nodes)}", domain=domain, **attrs
        )
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def contrib(self, operator: str, *inputs: str, **options: Any) -> Any:
        return self.op(operator, *inputs, domain=CONTRIB, **options)

    def ints(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(np.float32(value))

    def constant(self, array: Any, name: str | None = None) -> str:
        array = np.asarray(array)
        name = name or f"c_{array.dtype}_{array.shape}_{hash(array.tobytes()) & 0xFFFFFFFF:x}"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, *shape: int, centre: float = 0.0) -> str:
        spread = 0.1 if len(shape) == 1 else shape[0] ** -0.5 * 2
        return self.constant((centre + spread * self._random.standard_normal(shape)).astype(np.float32), name)

    def input(self, name: str, shape: list[Any], kind: int = TensorProto.INT64) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"out_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def past(self, layer: int) -> tuple[str, str]:
        shape = ["batch", GROUPS, "past", SIZE]
        key, value = (
            self.input(f"past_key_values.{layer}.{part}", shape, TensorProto.FLOAT) for part in ("key", "value")
        )
        return key, value

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "decoder", self.inputs, self.outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


Attend = Callable[[Writer, int, str], str]
Norm = Callable[[Writer, str, str], str]


def plain_norm(w: Writer, x: str, name: str) -> str:
    mean = (
        w.op("ReduceMean", w.op("Pow", x, w.number(2.0)), w.ints(-1), keepdims=1)
        if w.opset >= 18
        else w.op("ReduceMean", w.op("Pow", x, w.number(2.0)), axes=[-1], keepdims=1)
    )
    scale = w.op("Div", w.number(1.0), w.op("Sqrt", w.op("Add", mean, w.number(1e-6))))
    return w.op("Mul", w.op("Mul", x, scale), w.weight(name, HIDDEN, centre=1.0))


def standard_norm(w: Writer, x: str, name: str) -> str:
    return w.op("RMSNormalization", x, w.weight(name, HIDDEN, centre=1.0), axis=-1, epsilon=1e-6)


def contrib_norm(w: Writer, x: str, name: str) -> str:
    # As onnxruntime-genai writes it: in ONNX's own domain, though the operator is ONNX Runtime's.
    return w.op(
        "SimplifiedLayerNormalization", x, w.weight(name, HIDDEN, centre=1.0), axis=-1, epsilon=1e-6, stash_type=1
    )


def decoder(w: Writer, attend: Attend, norm: Norm, ids: str, positions: str | None = None) -> None:
    """Pre-norm layers with a gated feed-forward part; ``attend`` gives the attention's output [b,S,H*D].

    ``positions`` look up what is added to embeddings.
    """
    x = w.op("Gather", w.weight("embed", VOCAB, HIDDEN), ids, axis=0)
    if positions is not None:
        x = w.op("Add", x, w.op("Gather", w.weight("places", POSITIONS, HIDDEN), positions, axis=0))
    for i in range(LAYERS):
        mixed = w.op("MatMul", attend(w, i, norm(w, x, f"{i}.norm1")), w.weight(f"{i}.o", HEADS * SIZE, HIDDEN))
        x = w.op("Add", x, mixed)
        y = norm(w, x, f"{i}.norm2")
        gate, up = (w.op("MatMul", y, w.weight(f"{i}.{part}", HIDDEN, INNER)) for part in ("gate", "up"))
        hidden = w.op("Mul", w.op("Mul", gate, w.op("Sigmoid", gate)), up)
        x = w.op("Add", x, w.op("MatMul", hidden, w.weight(f"{i}.down", INNER, HIDDEN)))
    logits = w.op("MatMul", norm(w, x, "norm"), w.weight("head", HIDDEN, VOCAB))
    w.output(logits, "logits", ["batch", "tokens", VOCAB])


def projections(w: Writer, layer: int, x: str) -> tuple[str, str, str]:
    sizes = {"q": HEADS, "k": GROUPS, "v": GROUPS}
    q, k, v = (w.op("MatMul", x, w.weight(f"{layer}.{part}", HIDDEN, n * SIZE)) for part, n in sizes.items())
    return q, k, v


def tables(w: Writer) -> tuple[str, str]:
    """Cosines and sines [POSITIONS, SIZE/2] of rope."""
    angles = np.outer(np.arange(POSITIONS), 10000.0 ** (-np.arange(0, SIZE, 2) / SIZE))
    return (
        w.constant(np.cos(angles).astype(np.float32), "cos_cache"),
        w.constant(np.sin(angles).astype(np.float32), "sin_cache"),
    )


def heads(w: Writer, x: str, count: int) -> str:
    return w.op("Transpose", w.op("Reshape", x, w.ints(0, 0, count, SIZE)), perm=[0, 2, 1, 3])


def repeated(w: Writer, x: str) -> str:
    shape = w.op("Concat", w.op("Shape", x, start=0, end=2), w.ints(HEADS // GROUPS), w.op("Shape", x, start=2), axis=0)
    flat = w.op("Concat", w.op("Shape", x, start=0, end=1), w.ints(HEADS), w.op("Shape", x, start=2), axis=0)
    return w.op("Reshape", w.op("Expand", w.op("Unsqueeze", x, w.ints(2)), shape), flat)


def merged(w: Writer, x: str) -> str:
    return w.op("Reshape", w.op("Transpose", x, perm=[0, 2, 1, 3]), w.ints(0, 0, HEADS * SIZE))


def grouped(packed: bool = False, sinks: bool = False, **options: Any) -> Callable[[Writer], None]:
    """onnxruntime-genai: GroupQueryAttention rotates, caches and masks; lengths come from the mask."""

    def write(w: Writer) -> None:
        ids, mask = w.input("input_ids", ["batch", "tokens"]), w.input("attention_mask", ["batch", "total"])
        counted = w.op("ReduceSum", mask, w.ints(1), keepdims=0)
        lengths = w.op("Cast", w.op("Sub", counted, w.ints(1)), to=TensorProto.INT32)
        total = w.op("Cast", w.op("Gather", w.op("Shape", mask), w.constant(np.int64(1)), axis=0), to=TensorProto.INT32)
        cos, sin = tables(w)

        def attend(w: Writer, layer: int, x: str) -> str:
            key, value = w.past(layer)
            q, k, v = projections(w, layer, x)
            if packed:
                q, k, v = w.op("Concat", q, k, v, axis=-1), "", ""
            inputs = [q, k, v, key, value, lengths, total, cos, sin]
            if sinks:
                inputs += ["", "", w.weight(f"{layer}.sinks", HEADS)]
            attributes = {"num_heads": HEADS, "kv_num_heads": GROUPS, "do_rotary": 1} | options
            out, grown_key, grown_value = w.contrib("GroupQueryAttention", *inputs, outputs=3, **attributes)
            for part, grown in (("key", grown_key), ("value", grown_value)):
                w.output(grown, f"present.{layer}.{part}", ["batch", GROUPS, "total", SIZE])
            return out

        decoder(w, attend, contrib_norm, ids)

    return write


def quantized(bits: int, zeros: bool) -> Callable[[Writer], None]:
    """onnxruntime-genai's int4 models: norms of sums, and linears of codes; the last block of a row may be short."""

    def write(w: Writer) -> None:
        ids, mask = w.input("input_ids", ["batch", "tokens"]), w.input("attention_mask", ["batch", "total"])
        counted = w.op("ReduceSum", mask, w.ints(1), keepdims=0)
        lengths = w.op("Cast", w.op("Sub", counted, w.ints(1)), to=TensorProto.INT32)
        total = w.op("Cast", w.op("Gather", w.op("Shape", mask), w.constant(np.int64(1)), axis=0), to=TensorProto.INT32)
        cos, sin = tables(w)

        def linear(x: str, name: str, depth: int, features: int, block: int = 16) -> str:
            blocks = -(-depth // block)
            random = np.random.default_rng(len(name))
            codes = w.constant(
                random.integers(0, 256, (features, blocks, block * bits // 8), np.uint8), f"{name}.codes"
            )
            spread = (depth**-0.5 / (1 << (bits - 2)) * random.uniform(0.5, 1, (features * blocks))).astype(np.float32)
            points = []
            if zeros:
                points = [
                    w.constant(random.integers(0, 256, features * -(-blocks * bits // 8), np.uint8), f"{name}.zeros")
                ]
            scales = w.constant(spread, f"{name}.scales")
            return w.contrib(  # type: ignore[no-any-return]
                "MatMulNBits", x, codes, scales, *points, K=depth, N=features, bits=bits, block_size=block
            )

        x = w.op("Gather", w.weight("embed", VOCAB, HIDDEN), ids, axis=0)
        y = contrib_norm(w, x, "0.norm1")
        for i in range(LAYERS):
            q, k, v = (linear(y, f"{i}.{p}", HIDDEN, n * SIZE) for p, n in (("q", HEADS), ("k", GROUPS), ("v", GROUPS)))
            out = w.contrib(
                "GroupQueryAttention",
                *(q, k, v, *w.past(i), lengths, total, cos, sin),
                outputs=3,
                num_heads=HEADS,
                kv_num_heads=GROUPS,
                do_rotary=1,
            )[0]
            weights = [w.weight(f"{i}.norm{n}", HIDDEN, centre=1.0) for n in (2, 3)]
            options = {"outputs": 4, "epsilon": 1e-6}
            mixed = linear(out, f"{i}.o", HEADS * SIZE, HIDDEN, 32)
            y, _, _, x = w.contrib("SkipSimplifiedLayerNormalization", x, mixed, weights[0], **options)
            gate, up = (linear(y, f"{i}.{part}", HIDDEN, INNER) for part in ("gate", "up"))
            hidden = w.op("Mul", w.contrib("QuickGelu", gate, alpha=1.0), up)
            down = linear(hidden, f"{i}.down", INNER, HIDDEN, 32)  # 48 columns: a block and a half
            y, _, _, x = w.contrib("SkipSimplifiedLayerNormalization", x, down, weights[1], **options)
        w.output(w.op("MatMul", y, w.weight("head", HIDDEN, VOCAB)), "logits", ["batch", "tokens", VOCAB])

    return write


def multi_head(w: Writer) -> None:
    """ONNX Runtime's optimized graphs: RotaryEmbedding, MultiHeadAttention with as many keys as queries."""
    ids, positions = w.input("input_ids", ["batch", "tokens"]), w.input("position_ids", ["batch", "tokens"])
    cos, sin = tables(w)

    def attend(w: Writer, layer: int, x: str) -> str:
        q, k, v = (w.op("MatMul", x, w.weight(f"{layer}.{part}", HIDDEN, HEADS * SIZE)) for part in ("q", "k", "v"))
        q, k = (w.contrib("RotaryEmbedding", part, positions, cos, sin, num_heads=HEADS) for part in (q, k))
        bias = w.weight(f"{layer}.bias", 3 * HEADS * SIZE)
        return w.contrib("MultiHeadAttention", q, k, v, bias, num_heads=HEADS, unidirectional=1)

    decoder(w, attend, contrib_norm, ids)


def standard(rank: int = 4) -> Callable[[Writer], None]:
    """The operators of opset 23, with a past; positions follow from its length."""

    def write(w: Writer) -> None:
        ids = w.input("input_ids", ["batch", "tokens"])
        pasts = [w.past(layer) for layer in range(LAYERS)]
        cos, sin = tables(w)
        lengths = [
            w.op("Squeeze", w.op("Shape", value, start=axis, end=axis + 1))
            for value, axis in ((pasts[0][0], 2), (ids, 1))
        ]
        total = w.op("Add", *lengths)
        row = w.op("Unsqueeze", w.op("Range", lengths[0], total, w.constant(np.int64(1))), w.ints(0))
        positions = w.op("Expand", row, w.op("Shape", ids))

        def attend(w: Writer, layer: int, x: str) -> str:
            q, k, v = projections(w, layer, x)
            q, k = (
                w.op("RotaryEmbedding", part, cos, sin, positions, num_heads=n) for part, n in ((q, HEADS), (k, GROUPS))
            )
            options: dict[str, Any] = {"is_causal": 1}
            if rank == 4:
                q, k, v = heads(w, q, HEADS), heads(w, k, GROUPS), heads(w, v, GROUPS)
            else:
                options |= {"q_num_heads": HEADS, "kv_num_heads": GROUPS}
            out, key, value = w.op("Attention", q, k, v, "", *pasts[layer], outputs=3, **options)
            w.output(key, f"present.{layer}.key", ["batch", GROUPS, "total", SIZE])
            w.output(value, f"present.{layer}.value", ["batch", GROUPS, "total", SIZE])
            return merged(w, out) if rank == 4 else out

        decoder(w, attend, standard_norm, ids)

    return write


def written_out(window: int = 0) -> Callable[[Writer], None]:
    """Plain operators, as optimum's exports have them: positions from sums of the mask, scores scaled on both sides."""

    def write(w: Writer) -> None:
        ids, mask = w.input("input_ids", ["batch", "tokens"]), w.input("attention_mask", ["batch", "total"])
        pasts = [w.past(layer) for layer in range(LAYERS)]
        one = w.constant(np.int64(1))
        tokens = w.op("Shape", ids, start=1, end=2)
        total = w.op("Shape", mask, start=1, end=2)
        summed = w.op("Sub", w.op("CumSum", mask, one), one)
        positions = w.op("Slice", summed, w.op("Neg", tokens), w.ints(1 << 40), w.ints(1))
        keys = w.op("Range", w.constant(np.int64(0)), w.op("Squeeze", total), one)
        queries = w.op("Unsqueeze", w.op("Slice", keys, w.op("Neg", tokens), w.ints(1 << 40)), w.ints(1))
        seen = w.op("LessOrEqual", w.op("Unsqueeze", keys, w.ints(0)), queries)
        if window:
            recent = w.op(
                "Greater", w.op("Unsqueeze", keys, w.ints(0)), w.op("Sub", queries, w.constant(np.int64(window)))
            )
            seen = w.op("And", seen, recent)
        real = w.op("Cast", w.op("Unsqueeze", mask, w.ints(1, 2)), to=TensorProto.BOOL)
        seen = w.op("And", w.op("Unsqueeze", seen, w.ints(0, 1)), real)
        added = w.op("Where", seen, w.number(0.0), w.number(np.finfo(np.float32).min))
        frequencies = w.constant((10000.0 ** (-np.arange(0, SIZE, 2) / SIZE)).astype(np.float32).reshape(1, -1, 1))
        row = w.op("Cast", w.op("Unsqueeze", positions, w.ints(1)), to=TensorProto.FLOAT)
        angles = w.op("Transpose", w.op("MatMul", frequencies, row), perm=[0, 2, 1])
        angles = w.op("Unsqueeze", w.op("Concat", angles, angles, axis=-1), w.ints(1))
        cos, sin = w.op("Cos", angles), w.op("Sin", angles)

        def rotated(x: str) -> str:
            first, second = w.op("Split", x, w.ints(SIZE // 2, SIZE // 2), outputs=2, axis=-1)
            turned = w.op("Concat", w.op("Neg", second), first, axis=-1)
            return w.op("Add", w.op("Mul", x, cos), w.op("Mul", turned, sin))

        def attend(w: Writer, layer: int, x: str) -> str:
            q, k, v = (
                heads(w, part, n) for part, n in zip(projections(w, layer, x), (HEADS, GROUPS, GROUPS), strict=True)
            )
            q, k = rotated(q), rotated(k)
            k, v = (w.op("Concat", old, new, axis=2) for old, new in zip(pasts[layer], (k, v), strict=True))
            w.output(k, f"present.{layer}.key", ["batch", GROUPS, "total", SIZE])
            w.output(v, f"present.{layer}.value", ["batch", GROUPS, "total", SIZE])
            root = w.number(SIZE**-0.25)
            scores = w.op(
                "MatMul", w.op("Mul", q, root), w.op("Mul", w.op("Transpose", repeated(w, k), perm=[0, 1, 3, 2]), root)
            )
            probs = w.op("Softmax", w.op("Add", scores, added), axis=-1)
            return merged(w, w.op("MatMul", probs, repeated(w, v)))

        decoder(w, attend, plain_norm, ids)

    return write


def learned(w: Writer) -> None:
    """Plain operators, as optimum writes GPT-2: learned positions; lengths and scale are asked of hidden states."""
    ids = w.input("input_ids", ["batch", "tokens"])
    pasts = [w.past(layer) for layer in range(LAYERS)]
    zero, one = w.constant(np.int64(0)), w.constant(np.int64(1))
    old = w.op("Squeeze", w.op("Shape", pasts[0][0], start=2, end=3))
    total = w.op("Add", old, w.op("Squeeze", w.op("Shape", ids, start=1, end=2)))
    positions = w.op("Unsqueeze", w.op("Range", old, total, one), w.ints(0))

    def attend(w: Writer, layer: int, x: str) -> str:
        q, k, v = (heads(w, part, n) for part, n in zip(projections(w, layer, x), (HEADS, GROUPS, GROUPS), strict=True))
        k, v = (w.op("Concat", before, new, axis=2) for before, new in zip(pasts[layer], (k, v), strict=True))
        w.output(k, f"present.{layer}.key", ["batch", GROUPS, "total", SIZE])
        w.output(v, f"present.{layer}.value", ["batch", GROUPS, "total", SIZE])
        tokens = w.op("Squeeze", w.op("Shape", x, start=1, end=2))
        # A number that might be a window's width, and is beyond what the table of positions has.
        far = w.constant(np.int64(10 * POSITIONS))
        keys = w.op("Sub", w.op("Add", w.op("Range", zero, w.op("Add", old, tokens), one), far), far)
        queries = w.op("Unsqueeze", w.op("Slice", keys, w.op("Reshape", old, w.ints(1)), w.ints(1 << 40)), w.ints(1))
        seen = w.op("LessOrEqual", w.op("Unsqueeze", keys, w.ints(0)), queries)
        added = w.op("Where", seen, w.number(0.0), w.number(np.finfo(np.float32).min))
        size = w.op("Cast", w.op("Shape", q, start=3, end=4), to=TensorProto.FLOAT)
        root = w.op("Sqrt", w.op("Div", w.number(1.0), w.op("Sqrt", size)))
        k, v = repeated(w, k), repeated(w, v)
        scores = w.op("MatMul", w.op("Mul", q, root), w.op("Mul", w.op("Transpose", k, perm=[0, 1, 3, 2]), root))
        probs = w.op("Softmax", w.op("Add", scores, added), axis=-1)
        return merged(w, w.op("MatMul", probs, v))

    decoder(w, attend, plain_norm, ids, positions)


DIALECTS: dict[str, tuple[int, Callable[[Writer], None]]] = {
    "grouped": (18, grouped()),
    "grouped-packed-window": (18, grouped(packed=True, local_window_size=5, softcap=3.0)),
    "grouped-interleaved": (18, grouped(rotary_interleaved=1, scale=0.3)),
    "grouped-sinks": (18, grouped(sinks=True)),
    "grouped-smooth": (18, grouped(smooth_softmax=1)),
    "four-bits": (18, quantized(4, zeros=False)),
    "four-bits-zeros": (18, quantized(4, zeros=True)),
    "eight-bits": (18, quantized(8, zeros=True)),
    "multi-head": (18, multi_head),
    "standard": (23, standard()),
    "standard-flat": (23, standard(rank=3)),
    "written-out": (17, written_out()),
    "learned": (18, learned),
    "written-out-window": (18, written_out(window=5)),
}


def write(dialect: str) -> onnx.ModelProto:
    """The model of a dialect."""
    opset, fill = DIALECTS[dialect]
    writer = Writer(opset)
    fill(writer)
    return writer.model()


def write_merged(negated: bool = False) -> onnx.ModelProto:
    """As optimum merges decoders: an If by ``use_cache_branch``; the branch without a past gives nothing but zeros."""
    model = write("written-out")
    inner, outer = model.graph, onnx.GraphProto()
    flag = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    outputs = [helper.make_tensor_value_info(v.name, v.type.tensor_type.elem_type, None) for v in inner.output]
    with_past = helper.make_graph(inner.node, "with_past", [], outputs)
    zeros = [
        helper.make_node("ConstantOfShape", ["some_shape"], [f"none.{index}"], name=f"none_{index}")
        for index in range(len(outputs))
    ]
    empty = [helper.make_tensor_value_info(f"none.{i}", TensorProto.FLOAT, None) for i in range(len(outputs))]
    shape = numpy_helper.from_array(np.array([1, 1, 1, 1]), "some_shape")
    without = helper.make_graph(zeros, "without", [], empty, initializer=[shape])
    then, other = (without, with_past) if negated else (with_past, without)
    condition = "no_past" if negated else "use_cache_branch"
    if negated:
        outer.node.append(helper.make_node("Not", ["use_cache_branch"], [condition], name="negated"))
    names = [v.name for v in inner.output]
    for value in with_past.output:
        value.name = f"{value.name}.inner"
    for node in with_past.node:
        node.output[:] = [f"{name}.inner" if name in names else name for name in node.output]
        node.input[:] = [f"{name}.inner" if name in names else name for name in node.input]
    outer.node.append(helper.make_node("If", [condition], names, name="merged", then_branch=then, else_branch=other))
    outer.name = "merged"
    outer.input.extend([*inner.input, flag])
    outer.output.extend(inner.output)
    outer.initializer.extend(inner.initializer)
    model.graph.CopyFrom(outer)
    return model


def build(dialect: str, path: Path) -> Path:
    """The same, saved."""
    onnx.save(write(dialect), str(path))
    return path
