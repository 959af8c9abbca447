"""Operators of Relax with inputs: what a code generator meets in models and around them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import tvm
from tvm import relax
from tvm.relax import op
from tvm.s_tir import dlight

_RANDOM = np.random.default_rng(0)
Build = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """An operator, its inputs, and how far a device's result may be from a processor's, relative to 1 + |result|."""

    build: Build
    inputs: Sequence[np.ndarray]
    tolerance: float = 0.0


def _normal(*shape: int, dtype: str = "float32") -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(dtype)


def _integers(low: int, high: int, *shape: int, dtype: str = "int32") -> np.ndarray:
    return _RANDOM.integers(low, high, shape).astype(dtype)


def _domain(name: str) -> np.ndarray:
    x = _normal(13, 19)
    if name in ("log", "sqrt", "rsqrt"):
        return np.abs(x) + np.float32(0.1)
    if name in ("asin", "acos", "atanh"):
        return np.tanh(x) * np.float32(0.9)
    if name in ("sin", "cos", "tan"):
        return x * 300
    if name == "acosh":
        return np.abs(x) + np.float32(1.1)
    if name.startswith("is"):
        x[0, :3] = np.nan, np.inf, -np.inf
    return x


def _cast(source: str, to: str) -> Case:
    values = _RANDOM.standard_normal((9, 17)) * 20
    if "uint" in source + to:
        values = np.abs(values)
    kept = ml_dtypes.bfloat16 if source == "bfloat16" else source
    tolerance = 1e-3 if to == "float16" else 0.0
    return Case(lambda x: op.astype(x, to), [values.astype(kept)], tolerance)


_UNARY = (
    *("exp", "log", "sqrt", "rsqrt", "sin", "cos", "tan", "tanh", "sigmoid", "erf", "floor", "ceil", "round", "abs"),
    *("negative", "sinh", "cosh", "asin", "acos", "atan", "asinh", "acosh", "atanh", "sign"),
    *("isnan", "isinf", "isfinite"),
)
_CASTS = (
    *(("float32", "int8"), ("float32", "int32"), ("float32", "uint8"), ("float32", "float16"), ("float16", "float32")),
    *(("int8", "float32"), ("uint8", "float16"), ("int16", "int64"), ("int32", "int64"), ("int64", "int8")),
    *(("int64", "float32"), ("int32", "bool"), ("bool", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")),
)

CASES: dict[str, Case] = {
    **{name: Case(getattr(op, name), [_domain(name)], 3e-6) for name in _UNARY},
    **{f"{source}_to_{to}": _cast(source, to) for source, to in _CASTS},
    "add": Case(op.add, [_normal(16, 33), _normal(1, 33)]),
    "multiply_half": Case(op.multiply, [_normal(16, 33, dtype="float16"), _normal(1, 33, dtype="float16")], 1e-3),
    "divide": Case(op.divide, [_normal(16, 33), _normal(1, 33)], 1e-6),
    "power": Case(op.power, [_normal(16, 4), np.array([2, 3, 0, 4], "float32")], 1e-5),
    "floor_divide": Case(op.floor_divide, [_integers(-50, 50, 16, 33), _integers(1, 9, 1, 33)]),
    "floor_mod": Case(op.floor_mod, [_integers(-50, 50, 16, 33, dtype="int64"), _integers(1, 9, 1, 33, dtype="int64")]),
    "maximum_int8": Case(op.maximum, [_integers(-50, 50, 16, 32, dtype="int8") for _ in range(2)]),
    "shift_xor": Case(lambda x, y: op.bitwise_xor(op.left_shift(x, y), y), [_integers(0, 9, 33), _integers(0, 5, 33)]),
    "where": Case(op.where, [_normal(5, 16) > 0, _normal(5, 16), _normal(5, 16)]),
    "logical_and": Case(op.logical_and, [_normal(5, 16) > 0, _normal(5, 16) > 0]),
    "less": Case(op.less, [_normal(5, 16), _normal(5, 16)]),
    "softmax": Case(op.nn.softmax, [_normal(5, 300)], 1e-6),
    "softmax_half": Case(op.nn.softmax, [_normal(5, 300, dtype="float16")], 1e-3),
    "argmax": Case(lambda x: op.argmax(x, axis=-1), [_normal(5, 300)]),
    "sum": Case(lambda x: op.sum(x, axis=-1), [_normal(5, 300)], 1e-5),
    "mean_first": Case(lambda x: op.mean(x, axis=0), [_normal(65, 30)], 1e-6),
    "layer_norm": Case(lambda *x: op.nn.layer_norm(*x, axes=[-1]), [_normal(7, 128), _normal(128), _normal(128)], 1e-5),
    "rms_norm": Case(lambda *x: op.nn.rms_norm(*x, axes=[-1]), [_normal(7, 128), _normal(128)], 1e-5),
    "matmul": Case(op.matmul, [_normal(17, 64), _normal(64, 48)], 1e-5),
    "gemv": Case(op.matmul, [_normal(1, 256), _normal(256, 128)], 1e-5),
    "gemv_transposed": Case(
        lambda x, w: op.matmul(x, op.permute_dims(w), out_dtype="float32"),
        [_normal(1, 256, dtype="float16"), _normal(64, 256, dtype="float16")],
        2e-5,
    ),
    "batched_matmul": Case(op.matmul, [_normal(3, 17, 64), _normal(3, 64, 48)], 1e-5),
    "take_int64": Case(lambda w, i: op.take(w, i, axis=0), [_normal(50, 64), _integers(0, 50, 9, dtype="int64")]),
    "take_half": Case(lambda w, i: op.take(w, i, axis=0), [_normal(50, 64, dtype="float16"), _integers(0, 50, 9)]),
    "gather": Case(
        lambda a, i: op.gather_elements(a, i, axis=1), [_normal(10, 14), _integers(0, 14, 10, 3, dtype="int64")]
    ),
    "transpose_half": Case(op.permute_dims, [_normal(50, 64, dtype="float16")]),
    "concat": Case(lambda a, b: op.concat([a, b], axis=1), [_normal(5, 6), _normal(5, 7)]),
    "strided_slice": Case(lambda a: op.strided_slice(a, [1], [2], [9], [3]), [_normal(5, 16)]),
    "arange": Case(lambda x: op.add(op.arange(0, 40, 1, "int64"), x), [np.arange(40)]),
    "tril": Case(op.tril, [_normal(20, 20)]),
    "gelu": Case(op.nn.gelu, [_normal(5, 40)], 1e-6),
    "silu_half": Case(op.nn.silu, [_normal(5, 40, dtype="float16")], 1e-3),
}


def legalized() -> tvm.IRModule:
    """One module with a function for each operator, not scheduled."""
    builder = relax.BlockBuilder()
    for name, case in CASES.items():
        variables = [
            relax.Var(f"x{i}", relax.TensorType(array.shape, str(array.dtype))) for i, array in enumerate(case.inputs)
        ]
        with builder.function(name, variables):
            with builder.dataflow():
                result = builder.emit_output(builder.normalize(case.build(*variables)))
            builder.emit_func_output(result)
    return relax.transform.LegalizeOps()(builder.get())


def scheduled(target: tvm.target.Target) -> tvm.IRModule:
    """The same for a GPU, by TVM's own rules."""
    gpu = dlight.gpu
    rules = dlight.ApplyDefaultSchedule(gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
    with target:
        return rules(legalized())
