"""Cache-free programs of tiny models, for pass tests: exported through a registered attention function."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from torch import fx, nn
from torch.export.graph_signature import InputKind
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

import dspark_compiler.graph.ops  # noqa: F401  (defines the operators)
from dspark_compiler.graph.program import EntryKind, EntryPoint, Program, Role

VOCAB = 97
_KEPT = ("aten.linear.default", "aten.silu.default", "aten.gelu.default")

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON, **_TOKENS),
    "qwen3": lambda: transformers.Qwen3Config(**_COMMON, **_TOKENS, head_dim=8, attention_bias=True),
    "gemma2": lambda: transformers.Gemma2Config(
        **_COMMON, **_TOKENS, head_dim=8, sliding_window=12, query_pre_attn_scalar=8
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, **_TOKENS
    ),
}
FAMILIES = tuple(_CONFIGS)


@cache
def tiny_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of 2 layers with random weights wide enough that every part shows in the logits."""
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(_CONFIGS[family](), attn_implementation="eager").eval()
    for parameter in model.parameters():
        centre = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
        nn.init.normal_(parameter, centre, 0.2)
    return model.to(dtype).requires_grad_(False)


def capture(model: PreTrainedModel, prefill: tuple[int, ...] = (16,), batch: int = 1, verify: int = 4) -> Program:
    """The cache-free program of docs/architecture.md."""
    shapes = [(f"prefill_{n}", EntryKind.PREFILL, 1, n) for n in prefill]
    shapes += [("decode", EntryKind.DECODE, batch, 1), (f"verify_{verify}", EntryKind.VERIFY, batch, verify)]
    program = Program({}, {})
    for name, kind, rows, width in shapes:
        program.entries[name] = _export(model, program, EntryPoint(name, kind, rows, width, None, ("logits",)))
    return program


class _CacheFree(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, position_ids=positions, use_cache=False).logits


def _attention(module, q, k, v, mask, scaling=None, sliding_window=None, softcap=None, s_aux=None, **_):
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    op = torch.ops.dspark.attention
    return op(q, k, v, module.layer_idx, scale, sliding_window or 0, softcap or 0.0, s_aux), None


def _export(model: PreTrainedModel, program: Program, entry: EntryPoint) -> EntryPoint:
    name = "dspark_pass_tests"
    transformers.AttentionInterface.register(name, _attention)
    AttentionMaskInterface.register(name, lambda *args, **kwargs: None)
    ids = torch.zeros(entry.batch, entry.width, dtype=torch.int64)
    positions = torch.arange(entry.width).expand(entry.batch, -1).contiguous()
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        with torch.no_grad():
            exported = torch.export.export(_CacheFree(model), (ids, positions), strict=False)
            table = {op: f for op, f in torch.export.default_decompositions().items() if str(op) not in _KEPT}
            exported = exported.run_decompositions(table)
    finally:
        model.set_attn_implementation(before)
    entry.graph = fx.GraphModule({}, exported.graph)
    refs = iter(("input_ids", "positions"))
    placeholders = [n for n in entry.graph.graph.nodes if n.op == "placeholder"]
    for node, spec in zip(placeholders, exported.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            node.meta.update(role=Role.INPUT, ref=next(refs))
            continue
        ref = spec.target.removeprefix("model.")
        tensor = exported.state_dict.get(spec.target)
        program.params[ref] = (exported.constants[spec.target] if tensor is None else tensor).detach()
        node.meta.update(role=Role.PARAM, ref=ref)
    return entry
