"""The DSpark drafter in numpy, float64, written from the paper's equations and the layers' published definitions.

Nothing of ours and none of torch's layers is used; weights are arrays by tensor name. One sequence; shapes as in
models/drafters/base.py without the batch: context [P,m*d], block ids [g].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark_compiler.models.drafters.config import DrafterConfig

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def activation(name: str, x: Array) -> Array:
    if name == "silu":
        return x * sigmoid(x)
    assert name == "gelu_pytorch_tanh"
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rms(x: Array, eps: float, scale: Array | float = 1.0) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * scale


def rotated(x: Array, positions: NDArray[np.int64], theta: float) -> Array:
    """Heads [S,H,D] turned by their positions; the two halves of a head are the coordinates of its D/2 planes."""
    half = x.shape[-1] // 2
    angle = positions[:, None, None] * theta ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


@dataclass(frozen=True)
class Oracle:
    config: DrafterConfig
    weights: Mapping[str, Array]

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, x: Array, name: str) -> Array:
        return rms(x, self.config.rms_norm_eps, self.weights[f"{name}.weight"])

    def hidden(self, context: Array, block: Array) -> Array:
        """Normed hidden states [g,d] of embedded block tokens [g,d] after P context tokens (eqs. 2, 3)."""
        context = self.norm(self.linear(context, "fc"), "hidden_norm")
        for layer in range(self.config.num_hidden_layers):
            block = self.layer(f"layers.{layer}", context, block)
        return self.norm(block, "norm")

    def layer(self, name: str, context: Array, x: Array) -> Array:
        return self.after(
            name, x, self.attention(f"{name}.self_attn", context, self.norm(x, f"{name}.input_layernorm"))
        )

    def feature(self, rows: Array) -> Array:
        """What EAGLE-3's layer makes of a sequence's last row, given all [T,2d]: embeddings beside features."""
        size = self.config.hidden_size
        embedded = self.norm(rows[:, :size], "layers.0.input_layernorm")
        joined = np.concatenate([embedded, self.norm(rows[:, size:], "layers.0.hidden_norm")], axis=-1)
        mixed = self.attention("layers.0.self_attn", joined[:-1], joined[-1:])
        return self.after("layers.0", rows[-1:, size:], mixed)[0]

    def after(self, name: str, x: Array, mixed: Array) -> Array:
        if self.config.backbone != "gemma4":
            x = x + mixed
            return x + self.mlp(f"{name}.mlp", self.norm(x, f"{name}.post_attention_layernorm"))
        x = x + self.norm(mixed, f"{name}.post_attention_layernorm")
        fed = self.mlp(f"{name}.mlp", self.norm(x, f"{name}.pre_feedforward_layernorm"))
        return (x + self.norm(fed, f"{name}.post_feedforward_layernorm")) * self.weights[f"{name}.layer_scalar"]

    def mlp(self, name: str, x: Array) -> Array:
        gate = activation(self.config.hidden_act, self.linear(x, f"{name}.gate_proj"))
        return self.linear(gate * self.linear(x, f"{name}.up_proj"), f"{name}.down_proj")

    def attention(self, name: str, context: Array, x: Array) -> Array:
        config = self.config
        seen = np.concatenate([context, x])
        q, k = self.heads(x, f"{name}.q_proj"), self.heads(seen, f"{name}.k_proj")
        v = k if config.attention_k_eq_v else self.heads(seen, f"{name}.v_proj")
        if config.backbone != "llama":
            q, k = self.norm(q, f"{name}.q_norm"), self.norm(k, f"{name}.k_norm")
        if config.backbone == "gemma4":
            v = rms(v, config.rms_norm_eps)
        positions = np.arange(len(seen))
        q = rotated(q, positions[len(context) :], config.rope["rope_theta"])
        k = rotated(k, positions, config.rope["rope_theta"])
        scale = 1.0 if config.backbone == "gemma4" else config.head_dim**-0.5
        mixed = []
        for head in range(config.num_attention_heads):
            own = head * config.num_key_value_heads // config.num_attention_heads
            weights = np.exp(q[:, head] @ k[:, own].T * scale)
            mixed.append(weights / weights.sum(axis=-1, keepdims=True) @ v[:, own])
        return self.linear(np.concatenate(mixed, axis=-1), f"{name}.o_proj")

    def heads(self, x: Array, name: str) -> Array:
        return self.linear(x, name).reshape(len(x), -1, self.config.head_dim)

    def step(self, state: Array, hidden: Array, previous: int) -> tuple[Array, Array | float, Array]:
        """The next state [r], what is added to the logits [V], and the features of the confidence (eqs. 4 to 7)."""
        config = self.config
        if not config.markov_rank:
            return state, 0.0, hidden
        embedded = self.weights["markov_head.markov_w1.weight"][previous]
        features = np.concatenate([hidden, embedded]) if config.confidence_head_with_markov else hidden
        latent = embedded
        if config.markov_head_type == "gated":
            latent = embedded * sigmoid(self.linear(np.concatenate([hidden, embedded]), "markov_head.gate_proj"))
        if config.markov_head_type == "rnn":
            joint = self.linear(np.concatenate([state, embedded, hidden]), "markov_head.joint_proj")
            gate, candidate, out = np.split(joint, 3)
            state = sigmoid(gate) * state + (1 - sigmoid(gate)) * np.tanh(candidate)
            latent = np.tanh(out)
        return state, self.weights["markov_head.markov_w2.weight"] @ latent, features

    def confidence(self, features: Array) -> float:
        return float(self.linear(features, "confidence_head.proj")[0])
