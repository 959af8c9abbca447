"""Shapes and types are worked out without data."""

import operator

import pytest
import torch

from dspark_compiler.graph.program import TensorSpec
from dspark_compiler.graph.values import as_meta, infer, spec_of
from tests.graph.build import Builder, aten


def test_as_meta_keeps_strides_and_nesting():
    value = (torch.zeros(2, 3, dtype=torch.int32).t(), None)
    tensor, nothing = as_meta(value)
    assert tensor.is_meta
    assert (tensor.shape, tensor.stride(), tensor.dtype) == ((3, 2), (1, 3), torch.int32)
    assert nothing is None


def test_creation_on_a_device_takes_no_memory():
    b = Builder()
    node = b.call(aten.full.default, [1 << 20, 1 << 20], 1.0, device=torch.device("cpu"))  # 4 TiB if it were real
    assert node.meta["val"].is_meta
    assert spec_of(node) == TensorSpec((1 << 20, 1 << 20), torch.float32)


def test_tuples_and_their_items():
    b = Builder()
    split = b.call(aten.split_with_sizes.default, b.x, [3, 5], 2)
    item = b.call(operator.getitem, split, 1)
    assert [tuple(v.shape) for v in split.meta["val"]] == [(1, 4, 3), (1, 4, 5)]
    assert spec_of(item).shape == (1, 4, 5)
    with pytest.raises(TypeError, match="not a tensor"):
        spec_of(split)


def test_inference_tells_equal_numbers_of_different_type_apart():
    b = Builder()
    ids = b.entry.placeholder("input_ids")
    whole = b.call(aten.mul.Tensor, ids, 2)
    real = b.call(aten.mul.Tensor, ids, 2.0)
    assert infer(whole).dtype == torch.int64
    assert infer(real).dtype == torch.float32


def test_inference_passes_on_what_the_operator_rejects():
    b = Builder()
    node = b.call(aten.reshape.default, b.x, [4, 8])
    node.args = (b.x, [5, 5])
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        infer(node)
