"""What rounding may cost: fractions of eager's greedy tokens, and ratios of perplexities, by what is rounded.

Measured on SmolLM2-135M, its own weights against those rounded, over 1024 tokens of the built-in text (and 2048 of the
novel), as perplexity and fraction of tokens: int8 +0.5 % (+0.0), 0.96; e4m3 -0.1 % (+1.4), 0.92; int4 in groups of 128
+38 % (+42), 0.63, with activation-aware scales +25 % (+22), 0.74. A model of that size has little to spare at four
bits, and larger ones lose far less: the budgets catch what is broken, and leave what four bits cost a small model.
"""

from dataclasses import dataclass

from dspark_compiler.artifact import Manifest


@dataclass(frozen=True)
class Budget:
    """At least this fraction of the greedy tokens must be eager's, at most this may the perplexity be times eager's."""

    agreement: float
    perplexity_ratio: float

    def both(self, other: "Budget") -> "Budget":
        """What may be lost where two things are rounded: the laxer of each."""
        return Budget(min(self.agreement, other.agreement), max(self.perplexity_ratio, other.perplexity_ratio))


# 16-bit weights, or an 8-bit cache. SmolLM2-135M in bfloat16: 99.7 % of the tokens, 0.999 times; with an e4m3 cache
# 96.5 %, 0.995 times.
ROUNDED = Budget(0.95, 1.02)
_QUANTIZED = {
    "int8": Budget(0.92, 1.01),
    "fp8": Budget(0.88, 1.03),
    "int4-g128": Budget(0.5, 1.5),
    "int4-g128-awq": Budget(0.6, 1.35),
    "keep": Budget(0.98, 1.01),
}


def budget_of(manifest: Manifest) -> Budget:
    """What an artifact may lose against its source."""
    quantization = manifest.quantization
    if quantization is None:
        return ROUNDED
    quantized = _QUANTIZED[quantization.scheme]
    plain = manifest.dtype == "float32" and manifest.kv.dtype == "float32"
    return quantized if plain else quantized.both(ROUNDED)
