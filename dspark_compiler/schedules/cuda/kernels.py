"""The kernel templates for Nvidia GPUs that converters of all targets call, by name."""

from collections.abc import Mapping
from functools import partial

from tvm.tirx.script.builder import ir as T

from dspark_compiler.schedules.cuda import norm, rows
from dspark_compiler.schedules.cuda.accept import accept
from dspark_compiler.schedules.cuda.attention_mass import attention_mass
from dspark_compiler.schedules.cuda.block_attention import block_attention
from dspark_compiler.schedules.cuda.cache_codes import cached
from dspark_compiler.schedules.cuda.compact_slots import compact_slots
from dspark_compiler.schedules.cuda.draw import draw
from dspark_compiler.schedules.cuda.expert_linear import expert_linear
from dspark_compiler.schedules.cuda.flat import each
from dspark_compiler.schedules.cuda.logit_moments import logit_moments
from dspark_compiler.schedules.cuda.select_slots import select_slots
from dspark_compiler.schedules.cuda.token_probs import drawn_probs, token_probs
from dspark_compiler.schedules.cuda.topk import topk
from dspark_compiler.schedules.gpu.kernels import Template, gpu_kernels
from dspark_compiler.schedules.tir import Expr

_PLAIN: tuple[Template, ...] = (
    *(norm.rms_norm, norm.layer_norm, rows.packed_embedding, rows.quantized_embedding, rows.row_embedding),
    *(expert_linear, topk, token_probs, drawn_probs, draw, accept, block_attention, select_slots),
)
_READING_CACHES: tuple[Template, ...] = (attention_mass, logit_moments, compact_slots)


def cuda_kernels(dtype: str) -> Mapping[str, Template]:
    """Templates by name; caches that are not quantized hold ``dtype``."""
    common = gpu_kernels(dtype, each=each, turn=_turn, load=cached)
    reading = {template.__name__: partial(template, dtype=dtype) for template in _READING_CACHES}
    return common | {template.__name__: template for template in _PLAIN} | reading


def _turn(first: Expr, cos: Expr, second: Expr, sin: Expr) -> Expr:
    """A sum, of which nvcc fuses one product as qkv_prologue.py does; of a difference it rounds both."""
    return first * cos + (T.float32(0.0) - second) * sin
