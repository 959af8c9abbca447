"""Rows rounded to float16, each divided by a power of two that lets its greatest number fill the range.

So nothing is lost to overflow, and numbers down to 2^-28 of a row's greatest keep all bits float16 has.
"""

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.simt.threads import group_max, launch, registers
from dspark_compiler.schedules.tir import Buffer, when

_THREADS = 256
_VECTOR = 4
_EXPONENT_BITS = 23  # of a float32 lie above so many
_GREATEST = 14  # the exponent that a row's greatest number gets, one below the last of float16
_LEAST_FIELD = _GREATEST + 1  # exponent field below which rows are divided no more: the divisor has to be normal


def emit_rounded_rows(x: Buffer, rounded: Buffer, scale: Buffer) -> None:
    """The launch: x float32 [rows, depth] = scale float32 [rows] * rounded float16 [rows, padded], padding zero."""
    (rows, depth), padded = (int(size) for size in x.shape), int(rounded.shape[1])
    with launch((rows,), _THREADS) as (row, thread):
        greatest = registers(1)
        T.buffer_store(greatest, T.float32(0.0), [0])
        with T.serial(0, -(-depth // _THREADS)) as turn:
            column = T.Bind(turn * _THREADS + thread)
            with when(column < depth):
                T.buffer_store(greatest, T.max(greatest[0], T.fabs(x[row, column])), [0])
        field = T.Bind(T.reinterpret("uint32", group_max(greatest[0], thread, _THREADS)) >> T.uint32(_EXPONENT_BITS))
        lifted = T.Bind(T.max(field, T.uint32(_LEAST_FIELD)) - T.uint32(_GREATEST))
        factor = T.Bind(T.reinterpret("float32", (T.uint32(254) - lifted) << T.uint32(_EXPONENT_BITS)))
        with when(thread == 0):
            T.buffer_store(scale, T.reinterpret("float32", lifted << T.uint32(_EXPONENT_BITS)), [row])
        with T.serial(0, -(-padded // (_THREADS * _VECTOR))) as turn:
            first = T.Bind((turn * _THREADS + thread) * _VECTOR)
            with when(first < padded):
                if padded == depth:
                    with T.vectorized(0, _VECTOR) as e:
                        T.buffer_store(rounded, T.cast(x[row, first + e] * factor, "float16"), [row, first + e])
                else:
                    for e in range(_VECTOR):
                        column = T.Bind(first + e)
                        value = T.if_then_else(column < depth, x[row, T.min(column, depth - 1)], T.float32(0.0))
                        T.buffer_store(rounded, T.cast(value * factor, "float16"), [row, column])
