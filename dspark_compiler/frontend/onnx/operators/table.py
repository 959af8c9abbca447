"""Operator by (domain, name). What is not here is refused by name."""

import operator as python

import torch
from torch.nn import functional

from dspark_compiler.frontend.onnx.operators import arithmetic, gathers, networks, rotary, shapes
from dspark_compiler.frontend.onnx.operators.base import CONTRIB, OURS, Operator

_ARITHMETIC: dict[str, Operator] = {
    "Add": Operator(python.add, numbers=True),
    "Sub": Operator(python.sub, numbers=True),
    "Mul": Operator(python.mul, numbers=True),
    "Div": Operator(arithmetic.divide, numbers=True),
    "Pow": Operator(arithmetic.power, numbers=True),
    "Mod": Operator(arithmetic.modulo),
    "Max": Operator(arithmetic.largest),
    "Min": Operator(arithmetic.smallest),
    "Sum": Operator(arithmetic.total),
    "Neg": Operator(torch.neg),
    "Abs": Operator(torch.abs),
    "Sign": Operator(torch.sign),
    "Sqrt": Operator(torch.sqrt),
    "Reciprocal": Operator(torch.reciprocal),
    "Exp": Operator(torch.exp),
    "Log": Operator(torch.log),
    "Erf": Operator(torch.erf),
    "Sin": Operator(torch.sin),
    "Cos": Operator(torch.cos),
    "Tanh": Operator(torch.tanh),
    "Sigmoid": Operator(torch.sigmoid),
    "Softplus": Operator(functional.softplus),
    "Relu": Operator(torch.relu),
    "LeakyRelu": Operator(arithmetic.leaky_relu),
    "Gelu": Operator(arithmetic.gelu),
    "Swish": Operator(arithmetic.swish),
    "Floor": Operator(torch.floor),
    "Ceil": Operator(torch.ceil),
    "Round": Operator(torch.round),
    "Clip": Operator(arithmetic.clip, static=(1, 2)),
    "Cast": Operator(arithmetic.cast),
    "CastLike": Operator(arithmetic.cast_like),
    "Dropout": Operator(arithmetic.dropout),
    "Where": Operator(arithmetic.where),
    "IsNaN": Operator(torch.isnan),
    "IsInf": Operator(arithmetic.is_infinite),
    "Equal": Operator(torch.eq),
    "Less": Operator(torch.lt),
    "LessOrEqual": Operator(torch.le),
    "Greater": Operator(torch.gt),
    "GreaterOrEqual": Operator(torch.ge),
    "And": Operator(torch.logical_and),
    "Or": Operator(torch.logical_or),
    "Xor": Operator(torch.logical_xor),
    "Not": Operator(torch.logical_not),
    "BitwiseAnd": Operator(torch.bitwise_and),
    "BitwiseOr": Operator(torch.bitwise_or),
    "BitwiseNot": Operator(torch.bitwise_not),
}

_SHAPES: dict[str, Operator] = {
    "Identity": Operator(shapes.identity),
    "Constant": Operator(shapes.constant),
    "ConstantOfShape": Operator(shapes.constant_of_shape, static=(0,)),
    "Shape": Operator(shapes.shape_of, shape_only=True),
    "Size": Operator(shapes.size_of, shape_only=True),
    "Reshape": Operator(shapes.reshape, static=(1,)),
    "Flatten": Operator(shapes.flatten),
    "Expand": Operator(shapes.expand, static=(1,)),
    "Transpose": Operator(shapes.transpose),
    "Unsqueeze": Operator(shapes.unsqueeze, static=(1,)),
    "Squeeze": Operator(shapes.squeeze, static=(1,)),
    "Concat": Operator(shapes.concat),
    "Slice": Operator(shapes.slice_, static=(1, 2, 3, 4)),
    "Split": Operator(shapes.split, static=(1,), counts=True),
    "Tile": Operator(shapes.tile, static=(1,)),
    "Range": Operator(shapes.range_, static=(0, 1, 2)),
    "Pad": Operator(shapes.pad, static=(1, 2, 3)),
    "Trilu": Operator(shapes.trilu, static=(1,)),
    "CumSum": Operator(shapes.cumulated, static=(1,)),
    "OneHot": Operator(shapes.one_hot, static=(1,)),
    "EyeLike": Operator(shapes.eye_like),
    "Gather": Operator(gathers.gather),
    "GatherElements": Operator(gathers.gather_elements),
    "GatherND": Operator(gathers.gather_nd),
    "ScatterND": Operator(gathers.scatter_nd),
    "ScatterElements": Operator(gathers.scatter_elements),
    "TopK": Operator(gathers.top_k, static=(1,)),
    "ArgMax": Operator(gathers.arg_max),
    "NonZero": Operator(gathers.non_zero, shaped_by_values=True),
}

_NETWORKS: dict[str, Operator] = {
    "MatMul": Operator(torch.matmul),
    "Gemm": Operator(networks.gemm),
    "Einsum": Operator(networks.einsum),
    "Softmax": Operator(networks.softmax),
    "LogSoftmax": Operator(networks.log_softmax),
    "ReduceSum": Operator(networks.reduce_sum, static=(1,)),
    "ReduceMean": Operator(networks.reduce_mean, static=(1,)),
    "ReduceMax": Operator(networks.reduce_max, static=(1,)),
    "ReduceMin": Operator(networks.reduce_min, static=(1,)),
    "ReduceProd": Operator(networks.reduce_prod, static=(1,)),
    "ReduceSumSquare": Operator(networks.reduce_sum_square, static=(1,)),
    "ReduceL2": Operator(networks.reduce_l2, static=(1,)),
    "LayerNormalization": Operator(networks.layer_norm),
    "RMSNormalization": Operator(networks.rms_norm),
    "RotaryEmbedding": Operator(rotary.rotary_embedding),
}

_CONTRIBUTED: dict[str, Operator] = {
    "SimplifiedLayerNormalization": Operator(networks.rms_norm),
    "SkipSimplifiedLayerNormalization": Operator(networks.skip_rms_norm, counts=True),
    "SkipLayerNormalization": Operator(networks.skip_layer_norm, counts=True),
    "RotaryEmbedding": Operator(rotary.contrib_rotary_embedding),
    "FusedMatMul": Operator(networks.fused_matmul),
    "Gelu": Operator(arithmetic.gelu),
    "FastGelu": Operator(arithmetic.fast_gelu),
    "BiasGelu": Operator(arithmetic.bias_gelu),
    "QuickGelu": Operator(arithmetic.quick_gelu),
}

# What the rewrites of this package leave in the graph.
_OURS: dict[str, Operator] = {
    "Attention": Operator(networks.attention),
    "Gelu": Operator(arithmetic.gelu),
    "Linear": Operator(functional.linear),
    "Rotary": Operator(rotary.rotary),
    "Rsqrt": Operator(torch.rsqrt),
    "Silu": Operator(functional.silu),
}

OPERATORS: dict[tuple[str, str], Operator] = {
    **{("", name): entry for name, entry in (_ARITHMETIC | _SHAPES | _NETWORKS).items()},
    **{(CONTRIB, name): entry for name, entry in _CONTRIBUTED.items()},
    **{(OURS, name): entry for name, entry in _OURS.items()},
}
