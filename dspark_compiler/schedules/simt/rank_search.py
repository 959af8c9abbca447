"""A search for a number bit by bit, several bits in each pass over what is searched; and floats as such numbers."""

from collections.abc import Callable, Sequence

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.group_counts import held, variable
from dspark_compiler.schedules.tir import Expr

_SIGN, _SIGN_CLEAR = 1 << 31, 2**31 - 1


def highest(bits: int, step: int, hold: Callable[[Sequence[Expr]], Sequence[Expr]], needed: Expr | None = None) -> Expr:
    """The highest uint32 of so many bits of which something holds that holds of all numbers below it, and of 0.

    ``hold`` says of which of 2^step - 1 ascending candidates it does, all threads that search the same; ``step``
    divides ``bits``. Where ``needed`` is given and false nothing is searched, and the number is 0.
    """
    assert bits % step == 0
    found, digit = variable(T.uint32(0), "uint32"), variable(T.uint32(0), "uint32")
    turns = bits // step
    with T.serial(0, turns if needed is None else T.Select(needed, T.int32(turns), T.int32(0))) as turn:
        shift = held(T.cast(bits - step - turn * step, "uint32"), "uint32")
        candidates = [held(found[0] + (T.uint32(number) << shift), "uint32") for number in range(1, 1 << step)]
        T.buffer_store(digit, T.uint32(0), [0])
        for holds in hold(candidates):
            T.buffer_store(digit, digit[0] + T.Select(holds, T.uint32(1), T.uint32(0)), [0])
        T.buffer_store(found, found[0] + (digit[0] << shift), [0])
    return T.Bind(found[0])


def rank_of(value: Expr) -> Expr:
    """The place of a float32 in the order of all, uint32; NaN (sign clear) lies above all others."""
    bits = held(T.reinterpret("int32", value), "int32")
    # Negative floats order by falling magnitude: all of their bits change, of others the sign. It is one operation for
    # both, since LLVM takes a changed sign that is chosen by a condition for a negation, and dies of it for AMD's GPUs.
    change = T.bitwise_or(T.reinterpret("uint32", bits >> T.int32(31)), T.uint32(_SIGN))
    return held(T.bitwise_xor(T.reinterpret("uint32", bits), change), "uint32")


def float_of(rank: Expr) -> Expr:
    """The float32 of a rank."""
    ordered = held(T.reinterpret("int32", T.bitwise_xor(rank, T.uint32(_SIGN))), "int32")
    flipped = T.bitwise_xor(ordered, T.bitwise_and(ordered >> T.int32(31), T.int32(_SIGN_CLEAR)))
    return held(T.reinterpret("float32", flipped), "float32")
