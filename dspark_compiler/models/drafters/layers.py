"""Transformer layers drafters are built of, with the tensor names of DeepSpec's checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import dspark_compiler.graph.ops  # noqa: F401  (defines torch.ops.dspark)
from dspark_compiler.models.drafters.config import DrafterConfig

# (layer, q [b,H,S,D], k [b,G,S,D], v [b,G,S,D]) -> [b,S,H,D]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Style:
    """Where backbones differ: norms on queries and keys, Gemma's norms around each block, values and scaling."""

    qk_norm: bool = False
    sandwich: bool = False
    scaled: bool = True


STYLES = {"qwen3": Style(qk_norm=True), "llama": Style(), "gemma4": Style(qk_norm=True, sandwich=True, scaled=False)}


def attention_scale(config: DrafterConfig) -> float:
    """What scores are multiplied by."""
    return float(config.head_dim**-0.5) if STYLES[config.backbone].scaled else 1.0


class RMSNorm(nn.Module):
    """Zhang & Sennrich 2019, eq. 4; without ``learned`` the scale is 1."""

    def __init__(self, size: int, eps: float, *, learned: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size)) if learned else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """X [..., size]."""
        normed: Tensor = torch.ops.dspark.rms_norm(x, self.weight, self.eps)
        return normed


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021) with the frequencies the config asks for."""

    inv_freq: Tensor

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        inv_freq, self.scaling = _frequencies(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, positions: Tensor) -> Angles:
        """Positions int64 [b,S] -> cos and sin [b,1,S,D]."""
        # Step by step as transformers writes it, so that tables which are the target's, too, are made once.
        half = positions[:, :, None].float() * self.inv_freq
        angles = torch.cat([half, half], dim=-1)
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return cos[:, None], sin[:, None]


def _frequencies(config: DrafterConfig) -> tuple[Tensor, float]:
    rope = dict(config.rope)
    kind = rope.get("rope_type", "default")
    size = config.head_dim
    if kind == "default":
        exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
        return 1.0 / rope["rope_theta"] ** exponents, 1.0
    # Built as transformers builds the target's, so that the drafter rotates alike.
    settings = PretrainedConfig(
        head_dim=size,
        hidden_size=size * config.num_attention_heads,
        num_attention_heads=config.num_attention_heads,
        max_position_embeddings=rope.pop("max_position_embeddings", config.context_window),
        rope_parameters=rope,
    )
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](settings, device="cpu")
    return inv_freq.float(), float(scaling)


class MLP(nn.Module):
    """Gated feed-forward."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        inner = config.intermediate_size
        self.gate_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=False)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """X [..., d]."""
        out: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return out


class Attention(nn.Module):
    """Projections, norms and rope; what is attended to is the caller's matter. ``inputs`` is the size of x."""

    def __init__(self, config: DrafterConfig, layer: int, inputs: int) -> None:
        super().__init__()
        style = STYLES[config.backbone]
        self.layer, self.dim = layer, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        bias = config.attention_bias
        self.q_proj = nn.Linear(inputs, self.heads * self.dim, bias=bias)
        self.k_proj = nn.Linear(inputs, self.kv_heads * self.dim, bias=bias)
        self.v_proj = None if config.attention_k_eq_v else nn.Linear(inputs, self.kv_heads * self.dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.dim, config.hidden_size, bias=bias)
        eps = config.rms_norm_eps
        self.q_norm = RMSNorm(self.dim, eps) if style.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.dim, eps) if style.qk_norm else nn.Identity()
        self.v_norm = RMSNorm(self.dim, eps, learned=False) if style.sandwich else nn.Identity()

    def queries(self, x: Tensor, angles: Angles) -> Tensor:
        """X [b,S,inputs] -> [b,H,S,D]."""
        return _rotate(self.q_norm(self._split(self.q_proj(x), self.heads)), angles)

    def keys_values(self, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """X [b,S,inputs] -> keys and values [b,G,S,D]."""
        keys = self._split(self.k_proj(x), self.kv_heads)
        values = keys if self.v_proj is None else self._split(self.v_proj(x), self.kv_heads)
        return _rotate(self.k_norm(keys), angles), self.v_norm(values).transpose(1, 2)

    def forward(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """X [b,S,inputs] -> [b,S,d]."""
        mixed = attend(self.layer, self.queries(x, angles), *self.keys_values(x, angles))
        out: Tensor = self.o_proj(mixed.reshape(*x.shape[:2], -1))
        return out

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], heads, self.dim)


def _rotate(x: Tensor, angles: Angles) -> Tensor:
    """X [b,S,H,D] -> rotated [b,H,S,D]."""
    cos, sin = (angle.to(x.dtype) for angle in angles)
    rotated: Tensor = torch.ops.dspark.rope(x.transpose(1, 2), cos, sin)
    return rotated


class Layer(nn.Module):
    """What decoder layers of all drafters share: attention on ``inputs`` features, and all that comes after it."""

    layer_scalar: Tensor

    def __init__(self, config: DrafterConfig, layer: int, inputs: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, layer, inputs)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(size, eps)
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.sandwich = STYLES[config.backbone].sandwich
        if self.sandwich:
            self.pre_feedforward_layernorm = RMSNorm(size, eps)
            self.post_feedforward_layernorm = RMSNorm(size, eps)
            self.register_buffer("layer_scalar", torch.ones(1))

    def add(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Residual x and what attention made of it, [b,S,d] each, to what the layer hands on."""
        if not self.sandwich:
            x = x + mixed
            after: Tensor = x + self.mlp(self.post_attention_layernorm(x))
            return after
        x = x + self.post_attention_layernorm(mixed)
        fed = self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        scaled: Tensor = (x + fed) * self.layer_scalar
        return scaled


class DrafterLayer(Layer):
    """A decoder layer of a block drafter."""

    def __init__(self, config: DrafterConfig, layer: int) -> None:
        super().__init__(config, layer, config.hidden_size)

    def forward(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """X [b,S,d] -> [b,S,d]."""
        return self.add(x, self.self_attn(self.input_layernorm(x), angles, attend))


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention as training computes it: q [b,H,S,D], k, v [b,G,T,D], mask [b,1,S,T] -> [b,S,H,D]."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True).transpose(1, 2)
