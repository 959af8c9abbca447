"""Tokens a second that measured rounds would make if drafts stayed as often as the DSpark paper reports.

A projection, no measurement: what a round takes is measured here with random weights, how many tokens it brings is
Cheng et al. 2026, table 1 (seven drafts, temperature 1, whole blocks), for trained drafters of the same shapes.
"""

from collections.abc import Mapping
from typing import Any

TASKS = ("GSM8K", "MATH", "AIME25", "MBPP", "HumanEval", "LCB", "MT-Bench", "Alpaca", "Arena-Hard")
TOKENS_A_ROUND = {
    "qwen3-4b": (6.11, 5.70, 4.89, 5.13, 5.38, 4.86, 3.64, 3.54, 3.29),
    "qwen3-8b": (6.17, 5.78, 5.01, 5.16, 5.52, 5.17, 3.72, 3.58, 3.21),
}


def project(measured: Mapping[str, Any]) -> dict[str, Any]:
    """From what ``run`` wrote of an artifact with a drafter: by task, tokens a second and times plain decoding."""
    round_ms, decode_ms = measured["round_ms"], measured["decode_ms"]
    return {
        "projection": "measured round times, accepted lengths of Cheng et al. 2026, table 1; nothing was generated",
        "model": measured["model"],
        "quantize_heads": measured["quantize_heads"],
        "temperature": measured["temperature"],
        "round_ms": round_ms,
        "decode_ms": decode_ms,
        "tasks": {
            task: {
                "tokens_a_round": tau,
                "tokens_per_s": tau * 1e3 / round_ms,
                "over_plain": tau * decode_ms / round_ms,
            }
            for task, tau in zip(TASKS, TOKENS_A_ROUND[measured["model"]], strict=True)
        },
    }
