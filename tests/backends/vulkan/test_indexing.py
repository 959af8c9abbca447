"""What is told of indices at compile time: alignments, quotients, ranges."""

import pytest
from tvm import tirx

from dspark_compiler.backends.vulkan.indexing import alignment, quotient
from dspark_compiler.backends.vulkan.narrowing import Narrowing

ROW, COLUMN = tirx.Var("i", "int32"), tirx.Var("j", "int32")
WIDE, UNKNOWN = tirx.Var("wide", "int64"), tirx.Var("unknown", "int64")


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (ROW * 8, 8),
        (ROW * 8 + COLUMN * 4, 4),
        (ROW * 8 + 3, 1),
        (ROW * 6, 2),
        ((ROW << 3) + 16, 8),
        (ROW & -4, 4),
        (tirx.Select(ROW < 3, ROW * 4, COLUMN * 16), 4),
        (ROW, 1),
    ],
)
def test_an_index_is_a_multiple_of_what_its_terms_share(index: tirx.PrimFunc, expected: int) -> None:
    assert alignment(index, {}) == expected


def test_a_bound_variable_is_as_aligned_as_its_value() -> None:
    assert alignment(COLUMN + 8, {COLUMN: ROW * 16}) == 8


@pytest.mark.parametrize(
    ("index", "divisor", "expected"),
    [
        (ROW * 8, 8, ROW),
        (ROW * 8 + COLUMN * 16, 8, ROW + COLUMN * 2),
        (ROW * 6, 2, ROW * 3),
        (tirx.IntImm("int32", 24), 8, tirx.IntImm("int32", 3)),
        (ROW & -4, 4, tirx.shift_right(ROW & -4, tirx.IntImm("int32", 2))),
    ],
)
def test_quotients_are_taken_at_compile_time(index: tirx.PrimFunc, divisor: int, expected: tirx.PrimFunc) -> None:
    assert str(quotient(index, divisor, {})) == str(expected)


def test_an_index_of_64_bits_is_computed_in_32() -> None:
    narrowing = Narrowing({WIDE: (0, 100)}, {})
    index = narrowing.index(WIDE * 7 + tirx.Cast("int64", ROW))
    assert str(index.ty.dtype) == "int32"
    assert "int64" not in str(index).replace("wide", "").replace("Cast", "")


def test_a_quotient_of_what_may_be_large_stays_wide() -> None:
    narrowing = Narrowing({WIDE: (0, 100)}, {})
    small = narrowing.index(tirx.floordiv(WIDE * 2, tirx.IntImm("int64", 3)))
    large = narrowing.index(tirx.floordiv(UNKNOWN * 2, tirx.IntImm("int64", 3)))
    assert type(small).__name__ == "FloorDiv"
    assert type(large).__name__ == "Cast"


def test_a_comparison_is_narrowed_where_both_sides_are_small() -> None:
    narrowing = Narrowing({WIDE: (0, 100)}, {})
    assert str(narrowing.comparison(WIDE < WIDE * 3).a.ty.dtype) == "int32"
    assert str(narrowing.comparison(UNKNOWN < WIDE * 3).a.ty.dtype) == "int64"
    assert str(narrowing.comparison(WIDE * (1 << 30) < UNKNOWN).a.ty.dtype) == "int64"
