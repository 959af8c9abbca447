"""Model families: a literal table of what each needs; a type that is not in it takes the generic route."""

from dspark_compiler.models.base import Family, ModelInfo, eos_token_ids

__all__ = ["BATCHED_EXPERTS", "FAMILIES", "GENERIC", "Family", "ModelInfo", "eos_token_ids", "family_of"]

# Gathers each token's expert weights and multiplies in one batch: the only implementation whose shapes do not
# depend on the routing, so the only one that can be captured. The pass fuse_experts takes the gathering out again.
BATCHED_EXPERTS = "batched_mm"

FAMILIES: dict[str, Family] = {
    "llama": Family("Llama", note="rope scaling (linear, llama3, yarn) sits in inv_freq, a captured buffer"),
    "mistral": Family("Mistral", note="every layer slides; the window is read off the mask"),
    "qwen2": Family("Qwen2"),
    "qwen3": Family("Qwen3", note="norms on queries and keys"),
    "gemma2": Family("Gemma 2", note="soft-capped scores and logits, alternating windows, norms on both sides"),
    "gemma3_text": Family("Gemma 3", note="one inv_freq for sliding layers, one for full ones"),
    "phi3": Family("Phi-3", note="longrope factors are chosen by --max-seq-len, see frontend/rope.py"),
    "olmo2": Family("OLMo-2", note="norms after the blocks"),
    "granite": Family("Granite", note="multipliers on embeddings, residuals, attention and logits"),
    "smollm3": Family("SmolLM3", note="some layers without rope"),
    "gpt2": Family("GPT-2", note="learned positions; weights stored [in, out]"),
    "gpt_neox": Family("GPT-NeoX", note="rope on part of the head, parallel residual"),
    "mixtral": Family("Mixtral", experts=BATCHED_EXPERTS),
    "qwen3_moe": Family("Qwen3-MoE", experts=BATCHED_EXPERTS),
    "gpt_oss": Family("gpt-oss", experts=BATCHED_EXPERTS, note="attention sinks; experts with biases"),
}

GENERIC = Family("generic", experts=BATCHED_EXPERTS, note="not in the table: tried, and refused where capture stops")


def family_of(model_type: str) -> Family:
    """The family of a transformers ``model_type``, or the generic route."""
    return FAMILIES.get(model_type, GENERIC)
