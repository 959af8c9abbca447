"""Attention gets its cache; what does not fit it is refused by name."""

import pytest
import torch

from dspark_compiler.errors import PassError
from dspark_compiler.graph.printer import print_program
from dspark_compiler.graph.program import EntryKind, Program, Role, TensorSpec
from dspark_compiler.graph.verify import verify
from dspark_compiler.passes.eliminate_dead_code import EliminateDeadCode
from dspark_compiler.passes.insert_kv_cache import InsertKVCache
from tests.graph.build import WIDTH, Builder, aten, targets

dspark = torch.ops.dspark
BATCH = 2


def _attend(b: Builder, layer: int, x=None, groups: int = 2, dtype=torch.float32):
    """x as queries of 4 heads of 2, keys and values of ``groups`` heads."""
    x = b.x if x is None else x
    x = b.call(aten._to_copy.default, x, dtype=dtype) if dtype != torch.float32 else x
    heads = b.call(
        aten.permute.default, b.call(aten.reshape.default, x, [b.entry.batch, b.entry.width, 4, 2]), [0, 2, 1, 3]
    )
    few = b.call(aten.slice.Tensor, heads, 1, 0, groups)
    sinks = b.param("sinks", torch.zeros(4))
    out = b.call(dspark.attention.default, heads, few, few, layer, 0.5, 3, 7.0, sinks)
    return b.call(aten.reshape.default, out, [b.entry.batch, b.entry.width, 8])


def _program(layers: int = 2, kinds=(EntryKind.PREFILL, EntryKind.DECODE, EntryKind.VERIFY)) -> Program:
    program = Program({}, {})
    for kind in kinds:
        b = Builder(program, kind, 1 if kind is EntryKind.PREFILL else BATCH)
        y = b.x
        for layer in range(layers):
            y = _attend(b, layer, y)
        b.done(y, names=("logits",))
    return program


def test_golden(golden):
    program = _program()
    assert InsertKVCache(slots=16, batch=BATCH, verify_width=6).apply(program).modified
    verify(program, "after insert_kv_cache")
    golden("insert_kv_cache", print_program(program))


def test_states_are_shared_and_sized():
    program = _program()
    InsertKVCache(slots=16, batch=BATCH, verify_width=6).apply(program)
    cache, scratch = (TensorSpec((BATCH, 2, rows, 2), torch.float32) for rows in (16, 6))
    expected = {f"{letter}_{kind}.{layer}" for letter in "kv" for kind in ("cache", "scratch") for layer in range(2)}
    assert set(program.states) == expected
    assert all(spec == (cache if "cache" in ref else scratch) for ref, spec in program.states.items())


def test_without_verify_there_is_nothing_to_commit():
    program = _program(kinds=(EntryKind.PREFILL, EntryKind.DECODE))
    InsertKVCache(slots=16, batch=BATCH, verify_width=6).apply(program)
    verify(program, "after insert_kv_cache")
    assert list(program.entries) == ["prefill_4", "decode"]
    assert not any("scratch" in ref for ref in program.states)


def test_writes_survive_where_nobody_reads_the_result():
    b = Builder()
    _attend(b, 0)
    program = b.done(b.x)
    InsertKVCache(slots=16, batch=BATCH, verify_width=6).apply(program)
    EliminateDeadCode().apply(program)
    verify(program, "after eliminate_dead_code")
    assert dspark.append_attention.default in targets(program)


def test_the_cache_has_the_type_of_the_keys():
    b = Builder()
    program = b.done(_attend(b, 0, dtype=torch.bfloat16))
    InsertKVCache(slots=16, batch=BATCH, verify_width=6).apply(program)
    assert {spec.dtype for spec in program.states.values()} == {torch.bfloat16}
    assert b.entry.placeholder("k_cache.0").meta["role"] is Role.STATE


def test_a_second_run_changes_nothing():
    program = _program()
    InsertKVCache(slots=16, batch=BATCH, verify_width=6).apply(program)
    before = print_program(program)
    assert not InsertKVCache(slots=16, batch=BATCH, verify_width=6).apply(program).modified
    assert print_program(program) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 3}, "decode: has 2 rows for 3 sequences"),
        ({"verify_width": WIDTH - 1}, "verify_4: 4 tokens, but scratch holds 3"),
        ({"slots": WIDTH - 1}, "prefill_4: 4 tokens, but a sequence has 3 slots"),
    ],
)
def test_entry_points_that_do_not_fit(options, message):
    with pytest.raises(PassError, match=f"^insert_kv_cache: {message}$"):
        InsertKVCache(**({"slots": 16, "batch": BATCH, "verify_width": 6} | options)).apply(_program())


def test_no_attention():
    b = Builder()
    with pytest.raises(PassError, match=r"^insert_kv_cache: prefill_4: has no dspark::attention"):
        InsertKVCache(slots=16, batch=BATCH, verify_width=6).apply(b.done(b.x))


def test_two_attentions_of_one_layer():
    b = Builder()
    program = b.done(_attend(b, 0, _attend(b, 0)))
    with pytest.raises(PassError, match="prefill_4: attention_default_1: a second attention of layer 0"):
        InsertKVCache(slots=16, batch=BATCH, verify_width=6).apply(program)


def test_entry_points_that_disagree():
    program = _program(kinds=(EntryKind.PREFILL,), layers=1)
    b = Builder(program, EntryKind.DECODE, BATCH)
    b.done(_attend(b, 0, groups=1), names=("logits",))
    with pytest.raises(PassError, match=r"decode: attention_default: k_cache\.0 differs between entry points"):
        InsertKVCache(slots=16, batch=BATCH, verify_width=6).apply(program)
