"""The default pipeline: its order, its options, and the programs it makes of whole tiny models."""

from dataclasses import replace

import pytest
import torch

from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import InputError
from dspark_compiler.graph.printer import print_entry
from dspark_compiler.graph.program import EntryKind
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.insert_kv_cache import InsertKVCache
from dspark_compiler.passes.kv_policies import choose_policy
from dspark_compiler.passes.kv_pruning.budget import KVBudget
from dspark_compiler.passes.pipeline import default_pipeline
from dspark_compiler.passes.prune_kv_cache import PruneKVCache
from dspark_compiler.passes.quantize_kv_cache import QuantizeKVCache
from tests.passes.capture import FAMILIES, capture, tiny_model

CONFIG = CompileConfig(max_seq_len=64, max_batch=2, verify_width=4)


def test_order():
    assert [p.name for p in default_pipeline(CONFIG)] == [
        "canonicalize",
        "canonicalize_linear",
        "fuse_experts",
        "fold_constants",
        "fuse_rms_norm",
        "fuse_rope",
        "insert_kv_cache",
        "last_position_logits",
        "fuse_projections",
        "eliminate_dead_code",
    ]
    assert not any(p.changes_numerics for p in default_pipeline(CONFIG))


def test_options_reach_their_passes():
    assert InsertKVCache(slots=64, batch=2, verify_width=4) in default_pipeline(CONFIG)


@pytest.mark.parametrize(("kv_dtype", "stored"), [("int8", torch.int8), ("float8_e4m3", torch.float8_e4m3fn)])
def test_a_quantized_cache_is_made_right_after_the_cache(kv_dtype, stored):
    passes = default_pipeline(replace(CONFIG, kv_dtype=kv_dtype))
    at = [p.name for p in passes].index("insert_kv_cache")
    assert passes[at + 1] == QuantizeKVCache(stored)
    assert passes[: at + 1] + passes[at + 2 :] == default_pipeline(CONFIG)


def test_a_budget_prunes_the_cache_and_one_for_a_whole_sequence_does_not():
    passes = default_pipeline(replace(CONFIG, kv_budget=40, kv_policy="tova"))
    at = [p.name for p in passes].index("insert_kv_cache")
    assert passes[at + 1] == PruneKVCache(KVBudget.divide(40, CONFIG.verify_width), choose_policy("tova"))
    assert default_pipeline(replace(CONFIG, kv_budget=CONFIG.max_seq_len)) == default_pipeline(CONFIG)


def test_lengths_must_be_settled():
    with pytest.raises(InputError, match="--max-seq-len"):
        default_pipeline(CompileConfig())


@pytest.mark.parametrize("family", FAMILIES)
def test_golden(family, golden):
    program, _ = run_passes(default_pipeline(CONFIG), capture(tiny_model(family), batch=2))
    kinds = [e.kind for e in program.entries.values()]
    assert kinds == [EntryKind.PREFILL, EntryKind.DECODE, EntryKind.VERIFY, EntryKind.COMMIT]
    for kind, name in (("prefill", "prefill_16"), ("verify", "verify_4")):
        golden(f"{family}.{kind}", print_entry(program.entries[name]))
    if family == "llama":
        golden("llama.commit", print_entry(program.entries["commit"]))
    _, reports = run_passes(default_pipeline(CONFIG), program)
    assert [r.name for r in reports if r.modified] == [], "a second run must find nothing to do"
