"""What the later stages need to know about a model, read from its configuration once."""

from dataclasses import asdict, dataclass
from typing import Any

from transformers import GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


@dataclass(frozen=True)
class Family:
    """What one model type needs beyond the generic route.

    ``experts`` is the transformers experts implementation to capture with (None: the model has no experts);
    ``note`` says what is peculiar to the family and where it is taken care of.
    """

    title: str
    experts: str | None = None
    note: str = ""


@dataclass(frozen=True)
class ModelInfo:
    """The model as manifests and reports describe it; sizes in elements, lengths in tokens."""

    name: str
    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_positions: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {**asdict(self), "eos_token_ids": list(self.eos_token_ids)}

    @classmethod
    def from_config(cls, name: str, config: PretrainedConfig, generation: GenerationConfig | None) -> "ModelInfo":
        """Reads the text part of ``config``; ``generation`` wins where both name an end-of-sequence id."""
        text = config.get_text_config()
        # GGUF names no class; the one transformers would build is meant.
        architectures = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "unnamed")]
        return cls(
            name=name,
            architecture=architectures[0],
            model_type=config.model_type,
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            num_layers=text.num_hidden_layers,
            max_positions=text.max_position_embeddings,
            eos_token_ids=eos_token_ids(config, generation),
            bos_token_id=_first_set(generation, text, attribute="bos_token_id"),
        )


def eos_token_ids(config: PretrainedConfig, generation: GenerationConfig | None = None) -> tuple[int, ...]:
    """The ids that end a sequence: those of the generation config, else of the model config, else none."""
    ids = _first_set(generation, config, config.get_text_config(), attribute="eos_token_id")
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list | tuple) else (ids,)


def _first_set(*configs: PretrainedConfig | GenerationConfig | None, attribute: str) -> Any:
    return next((v for c in configs if (v := getattr(c, attribute, None)) is not None), None)
