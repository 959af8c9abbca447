"""What quantizing takes besides the program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dspark_compiler.quantization.weight import QuantizedWeight


@dataclass(frozen=True)
class QuantizationSource:
    """``text``, token ids a model is watched reading; ``stored``, the weights of a quantized checkpoint by name."""

    text: Sequence[int] = ()
    stored: Mapping[str, QuantizedWeight] = field(default_factory=dict)
