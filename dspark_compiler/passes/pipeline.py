"""The passes of a compile, in order."""

import torch

from dspark_compiler.config import CompileConfig, KVDType, Quantization, Target
from dspark_compiler.errors import InputError
from dspark_compiler.models.drafters.heads import Heads
from dspark_compiler.passes.attach_decode_heads import AttachDecodeHeads
from dspark_compiler.passes.base import Pass
from dspark_compiler.passes.canonicalize import Canonicalize
from dspark_compiler.passes.canonicalize_linear import CanonicalizeLinear
from dspark_compiler.passes.draw_tokens import DrawTokens
from dspark_compiler.passes.eliminate_dead_code import EliminateDeadCode
from dspark_compiler.passes.fold_constants import FoldConstants
from dspark_compiler.passes.fuse_experts import FuseExperts
from dspark_compiler.passes.fuse_projections import FuseProjections
from dspark_compiler.passes.fuse_rms_norm import FuseRMSNorm
from dspark_compiler.passes.fuse_rope import FuseRope
from dspark_compiler.passes.insert_kv_cache import InsertKVCache
from dspark_compiler.passes.keep_quantized import KeepQuantized
from dspark_compiler.passes.kv_policies import DEFAULT_POLICY, choose_policy
from dspark_compiler.passes.kv_pruning.budget import KVBudget
from dspark_compiler.passes.last_position_logits import LastPositionLogits
from dspark_compiler.passes.prune_kv_cache import PruneKVCache
from dspark_compiler.passes.quantize_heads import QuantizeHeads
from dspark_compiler.passes.quantize_kv_cache import QuantizeKVCache
from dspark_compiler.passes.quantize_weights import HEADS, QuantizeWeights
from dspark_compiler.passes.scale_channels import ScaleChannels
from dspark_compiler.quantization.source import QuantizationSource
from dspark_compiler.quantization.weight_format import WeightFormat

_KV_STORED: dict[KVDType, torch.dtype] = {"int8": torch.int8, "float8_e4m3": torch.float8_e4m3fn}
_WEIGHT_FORMATS: dict[Quantization, WeightFormat] = {
    "int8": WeightFormat("int8"),
    "int4-g128": WeightFormat("int4", group=128),
    "int4-g128-awq": WeightFormat("int4", group=128),
    "fp8": WeightFormat("float8_e4m3"),
}

_GPUS: tuple[Target, ...] = ("cuda", "rocm", "vulkan")


def default_pipeline(
    config: CompileConfig, heads: Heads | None = None, weights: QuantizationSource | None = None
) -> tuple[Pass, ...]:
    """The one list of passes, in the order they run.

    Args:
        config: its lengths must be settled; ``max_seq_len`` None means that nobody asked the model yet.
        heads: what ``config.heads`` holds; None where it names no folder.
        weights: what quantizing takes besides the program, for the kinds that take something.

    Raises:
        InputError: ``max_seq_len`` is not settled.
    """
    if config.max_seq_len is None:
        raise InputError("--max-seq-len: not given, and the model names no maximum; give one")
    stored = _KV_STORED.get(config.cache_dtype)
    return (
        Canonicalize(),  # first: every later pattern counts on one form for each thing
        CanonicalizeLinear(),  # puts transposes on weights, for the next one to fold
        FuseExperts(),  # may put transposes on weights, too
        FoldConstants(),  # before the norms: makes Gemma's 1 + weight a weight
        FuseRMSNorm(),  # needs the weights as params and casts that do something
        FuseRope(),  # before the cache: attention still reads what was rotated
        InsertKVCache(config.max_seq_len, config.max_batch, config.verify_width),
        *([] if stored is None else [QuantizeKVCache(stored)]),  # needs the cache, and nothing that comes later
        *_pruning(config),  # sizes what the cache has by now; needs attention as it was inserted
        *_drafting(config, heads),  # after the cache, which gives the inputs, and before the head moves to the last row
        *([DrawTokens()] if config.target in _GPUS else []),  # where reading logits costs more than drawing
        LastPositionLogits(),  # uses the count of real tokens that the cache brought
        FuseProjections(HEADS if config.target in _GPUS else None),  # late: sees which weights nothing else uses
        *_quantizing(config, weights),  # after what makes weights of others
        EliminateDeadCode(),  # last: sweeps up what all the others left
    )


def _quantizing(config: CompileConfig, weights: QuantizationSource | None) -> tuple[Pass, ...]:
    heads = config.quantize_heads
    # After the target: a head that has few bits already is the drafter's, too.
    return (
        *_quantizing_target(config, weights),
        *([] if heads is None else [QuantizeHeads(_WEIGHT_FORMATS[heads], config.target)]),
    )


def _quantizing_target(config: CompileConfig, weights: QuantizationSource | None) -> tuple[Pass, ...]:
    if config.quantize is None:
        return ()
    given = weights or QuantizationSource()
    if config.quantize == "keep":
        return (KeepQuantized(given.stored, config.target),)
    form = _WEIGHT_FORMATS[config.quantize]
    if config.quantize != "int4-g128-awq":
        return (QuantizeWeights(form, target=config.target),)
    return (ScaleChannels(form, given.text, config.target), QuantizeWeights(form, given.text, config.target))


def _drafting(config: CompileConfig, heads: Heads | None) -> tuple[Pass, ...]:
    assert config.max_seq_len is not None
    if config.heads is None:
        return ()
    attach = AttachDecodeHeads(heads, config.max_seq_len, config.max_batch, config.verify_width)
    return (attach, Canonicalize())  # what the drafter's modules traced to, once more


def _pruning(config: CompileConfig) -> tuple[Pass, ...]:
    assert config.max_seq_len is not None
    if config.kv_budget is None or config.kv_budget >= config.max_seq_len:
        return ()
    budget = KVBudget.divide(config.kv_budget, config.verify_width)
    return (PruneKVCache(budget, choose_policy(config.kv_policy or DEFAULT_POLICY, config.kv_weights)),)
