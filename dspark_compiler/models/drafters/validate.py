"""What must hold in a drafter's config and between it and a model; types alone cannot say it."""

from collections.abc import Iterator

from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dspark_compiler.errors import InputError
from dspark_compiler.models.base import ModelInfo
from dspark_compiler.models.drafters.config import DrafterConfig
from dspark_compiler.models.drafters.heads import Calibration, Heads

MAKE_OTHERS = "train heads for this model with dspark heads train, or give those made for it"


def check_config(config: DrafterConfig, where: str) -> None:
    """Refuses a config no drafter can be built of; ``where`` begins the message.

    Raises:
        InputError: naming the first field that does not hold.
    """
    for problem in _problems(config):
        raise InputError(f"{where}: {problem}; edited or damaged, get or make the heads again")


def check_calibration(calibration: Calibration, config: DrafterConfig, where: str) -> None:
    """Refuses a calibration that is not one of this drafter's.

    Raises:
        InputError: naming the first field that does not hold.
    """
    remedy = "remove the file, or calibrate the heads again"
    if not config.enable_confidence_head:
        raise InputError(f"{where}: calibrates a drafter that has no confidence head; {remedy}")
    for name in ("temperatures", "ece_before", "ece_after", "auc", "shifts"):
        values = getattr(calibration, name)
        if len(values) != config.block_size and not (name in ("temperatures", "shifts") and not values):
            raise InputError(f"{where}: {name}: {len(values)} numbers, {config.block_size} drafted tokens; {remedy}")
    # Not a number fails this too.
    if not all(0 < value < float("inf") for value in calibration.temperatures):
        raise InputError(f"{where}: temperatures: each must be a positive number; {remedy}")
    if not all(abs(value) < float("inf") for value in calibration.shifts):
        raise InputError(f"{where}: shifts: each must be a number; {remedy}")


def check_fits(heads: Heads, where: str, model: ModelInfo, tokenizer_sha256: str | None) -> None:
    """Refuses heads that were made for another model; tokenizers are compared where both are known.

    Raises:
        InputError: says what the heads were made for and what the model has.
    """
    made = heads.target
    pairs: list[tuple[str, object, object]] = [
        ("hidden size", made.hidden_size, model.hidden_size),
        ("vocabulary", made.vocab_size, model.vocab_size),
        ("layers", made.num_layers, model.num_layers),
    ]
    if made.tokenizer_sha256 is not None and tokenizer_sha256 is not None:
        pairs.append(("tokenizer", made.tokenizer_sha256[:12], tokenizer_sha256[:12]))
    for what, own, wanted in pairs:
        if own != wanted:
            raise InputError(
                f"{where}: these heads were made for {made.name} ({what}: {own}), "
                f"{model.name} has {wanted}; {MAKE_OTHERS}"
            )


def _problems(config: DrafterConfig) -> Iterator[str]:
    for name in ("hidden_size", "vocab_size", "num_target_layers", "block_size", "context_window"):
        if getattr(config, name) < 1:
            yield f"{name}: {getattr(config, name)} must be 1 or more"
    yield from _tap_problems(config)
    if config.drafter_type == "medusa":
        if config.num_hidden_layers < 0:
            yield f"num_hidden_layers: {config.num_hidden_layers} must be 0 or more"
    else:
        yield from _layer_problems(config)
    yield from _head_problems(config)


def _tap_problems(config: DrafterConfig) -> Iterator[str]:
    taps, layers = config.target_layer_ids, config.num_target_layers
    if not taps and config.drafter_type != "medusa":
        yield "target_layer_ids: empty, a drafter must read some layer of its target"
    if list(taps) != sorted(set(taps)):
        yield f"target_layer_ids: {list(taps)} must ascend"
    for tap in taps:
        if tap == layers - 1:
            # transformers hands its output on after the final norm: who trains on that list has not seen the layer's.
            yield f"target_layer_ids: {tap} is the target's last layer, whose output is not to be had unnormed"
        if not -1 <= tap < layers:
            yield f"target_layer_ids: {tap} is not a layer of a target with {layers} (-1 is the embedding)"


def _layer_problems(config: DrafterConfig) -> Iterator[str]:
    sizes = ("num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    for name in sizes:
        if getattr(config, name) < 1:
            yield f"{name}: {getattr(config, name)} must be 1 or more"
    if config.num_attention_heads % config.num_key_value_heads:
        yield (
            f"num_key_value_heads: {config.num_key_value_heads} does not divide "
            f"num_attention_heads {config.num_attention_heads}"
        )
    if config.head_dim % 2:
        yield f"head_dim: {config.head_dim} is odd, which rotary positions cannot be"
    if not config.rms_norm_eps >= 0:
        yield f"rms_norm_eps: {config.rms_norm_eps} must not be negative"
    if config.hidden_act not in ACT2FN:
        yield f"hidden_act: {config.hidden_act!r} is unknown to the installed transformers"
    yield from _rope_problems(config)
    if config.drafter_type == "dspark" and not 0 <= config.mask_token_id < config.vocab_size:
        yield f"mask_token_id: {config.mask_token_id} lies outside the vocabulary of {config.vocab_size}"
    if config.drafter_type == "eagle3" and config.num_hidden_layers != 1:
        yield f"num_hidden_layers: {config.num_hidden_layers}, but an eagle3 drafter has 1"
    if config.attention_k_eq_v and config.backbone != "gemma4":
        yield "attention_k_eq_v: only a gemma4 backbone has it"


def _rope_problems(config: DrafterConfig) -> Iterator[str]:
    kind, theta = config.rope.get("rope_type", "default"), config.rope.get("rope_theta")
    if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
        yield f"rope.rope_type: {kind!r} is unknown to the installed transformers"
    if not isinstance(theta, int | float) or not theta > 0:
        yield f"rope.rope_theta: {theta!r} is not a positive number"


def _head_problems(config: DrafterConfig) -> Iterator[str]:
    if config.markov_rank < 0:
        yield f"markov_rank: {config.markov_rank} must be 0 or more"
    # A head that is asked for and not there would be dropped in silence.
    if config.drafter_type != "dspark" and (config.markov_rank or config.enable_confidence_head):
        yield f"markov_rank, enable_confidence_head: {config.drafter_type} drafters have no such heads"
    if config.confidence_head_with_markov and not (config.markov_rank and config.enable_confidence_head):
        yield "confidence_head_with_markov: needs a confidence head and a markov_rank of 1 or more"
