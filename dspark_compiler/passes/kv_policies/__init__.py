"""Pruning policies, one a file. A new one is a file with a ``score`` and a row in POLICIES."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dspark_compiler.errors import InputError
from dspark_compiler.passes.kv_policies.base import Policy
from dspark_compiler.passes.kv_policies.expected_attention import ExpectedAttention
from dspark_compiler.passes.kv_policies.h2o import HeavyHitters
from dspark_compiler.passes.kv_policies.keydiff import KeyDiff
from dspark_compiler.passes.kv_policies.knorm import KeyNorm
from dspark_compiler.passes.kv_policies.kvzap import KVzap
from dspark_compiler.passes.kv_policies.snapkv import SnapKV
from dspark_compiler.passes.kv_policies.tova import Tova
from dspark_compiler.passes.kv_policies.window import Window

# Each gets the file of --kv-weights, or None.
POLICIES: dict[str, Callable[[Path | None], Policy]] = {
    "window": lambda _: Window(),
    "knorm": lambda _: KeyNorm(),
    "keydiff": lambda _: KeyDiff(),
    "expected-attention": lambda _: ExpectedAttention(),
    "tova": lambda _: Tova(),
    "h2o": lambda _: HeavyHitters(),
    "snapkv": lambda _: SnapKV(),
    "kvzap": KVzap.load,
}

# What a budget alone gets.
DEFAULT_POLICY = "h2o"

_PYRAMID = "pyramid:"
# Votes of a prompt's end say little about what the answer will need; recent tokens do.
_AFTER_SNAPKV = "window"


@dataclass(frozen=True)
class PolicyChoice:
    """What ``--kv-policy`` asked for.

    ``prompt`` scores while a prompt is read, ``decode`` afterwards; ``pyramid``: budgets fall with depth.
    """

    spelled: str
    prompt: Policy
    decode: Policy
    pyramid: bool


def choose_policy(spelled: str, weights: Path | None = None) -> PolicyChoice:
    """Reads NAME, snapkv+NAME, or either after ``pyramid:``.

    Raises:
        InputError: no such policy (lists them), or weights that a policy needs and does not get.
    """
    pyramid = spelled.startswith(_PYRAMID)
    prompt, plus, decode = spelled.removeprefix(_PYRAMID).partition("+")
    if plus and prompt != SnapKV.name:
        raise InputError(
            f"--kv-policy {spelled}: only {SnapKV.name} is followed by another policy, as in {SnapKV.name}+{decode}"
        )
    if prompt == SnapKV.name and decode in ("", SnapKV.name):
        decode = _AFTER_SNAPKV
    first = _named(prompt, spelled, weights)
    return PolicyChoice(spelled, first, _named(decode, spelled, weights) if decode else first, pyramid)


def _named(name: str, spelled: str, weights: Path | None) -> Policy:
    if name not in POLICIES:
        raise InputError(
            f"--kv-policy {spelled}: {name!r} is not one of {', '.join(POLICIES)}; "
            f"{SnapKV.name}+NAME and {_PYRAMID}NAME combine them"
        )
    return POLICIES[name](weights)
