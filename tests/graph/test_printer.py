"""The text form depends on the program alone."""

import torch

from dspark_compiler.graph.printer import print_entry, print_program
from dspark_compiler.graph.program import EntryKind
from tests.graph.build import Builder, aten, linear_weight


def _program(names_of_torch: int = 0):
    b = Builder()
    for _ in range(names_of_torch):  # makes torch number later nodes differently
        b.entry.graph.graph.erase_node(b.call(aten.neg.default, b.x))
    y = b.call(aten.neg.default, b.call(aten.linear.default, b.x, b.param("layer.w", linear_weight(0))))
    parts = b.call(aten.split_with_sizes.default, y, [3, 5], -1)
    half = b.call(aten._to_copy.default, b.call(aten.sum.default, y), dtype=torch.float16)
    program = b.done(y, half)
    return program, parts


def test_every_part_of_a_program_shows():
    program, _ = _program()
    decode = Builder(program, EntryKind.DECODE)
    decode.done(decode.x)
    text = print_program(program)
    assert text == (
        "prefill_4: prefill, batch 1, width 4\n"
        "  input %input_ids: int64[1, 4]\n"
        "  input %positions: int64[1, 4]\n"
        "  param @table: float32[7, 8]\n"
        "  param @layer.w: float32[8, 8]\n"
        "  %0 = aten.embedding(@table, %input_ids): float32[1, 4, 8]\n"
        "  %1 = aten.linear(%0, @layer.w): float32[1, 4, 8]\n"
        "  %2 = aten.neg(%1): float32[1, 4, 8]\n"
        "  %3 = aten.split_with_sizes(%2, [3, 5], -1): (float32[1, 4, 3], float32[1, 4, 5])\n"
        "  %4 = aten.sum(%2): float32[]\n"
        "  %5 = aten._to_copy(%4, dtype=float16): float16[]\n"
        "  return out0=%2, out1=%5\n"
        "\n"
        "decode: decode, batch 1, width 1\n"
        "  input %input_ids: int64[1, 1]\n"
        "  input %positions: int64[1, 1]\n"
        "  param @table: float32[7, 8]\n"
        "  %0 = aten.embedding(@table, %input_ids): float32[1, 1, 8]\n"
        "  return out0=%0\n"
    )


def test_names_given_by_torch_do_not_show():
    one, two = _program()[0], _program(names_of_torch=3)[0]
    assert print_program(one) == print_program(two)
    names = [[n.name for n in p.entries["prefill_4"].graph.graph.nodes] for p in (one, two)]
    assert names[0] != names[1], "the test has lost its point"


def test_a_text_ends_with_one_newline():
    program, _ = _program()
    assert print_entry(program.entries["prefill_4"]).endswith("%5\n")
