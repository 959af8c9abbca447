"""A source's model in memory, as a compile takes it: captured, and with the codes its weights were stored as."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from dspark_compiler.config import CompileConfig
from dspark_compiler.frontend.capture import capture
from dspark_compiler.graph.program import Program
from dspark_compiler.quantization.weight import QuantizedWeight


class LoadedModel(ABC):
    """See the module."""

    @abstractmethod
    def capture(self, config: CompileConfig) -> Program:
        """Its cache-free entry points.

        Raises:
            UnsupportedModelError: names the module or operator that stopped the capture.
        """

    @abstractmethod
    def stored_weights(self) -> dict[str, QuantizedWeight]:
        """The weights that are quantized on disk, by the names of the captured params."""


@dataclass(frozen=True)
class LoadedTransformers(LoadedModel):
    """A float32 transformers model; ``stored`` finds its weights' codes."""

    module: PreTrainedModel
    stored: Callable[[PreTrainedModel], dict[str, QuantizedWeight]]

    def capture(self, config: CompileConfig) -> Program:
        """See LoadedModel."""
        return capture(self.module, config)

    def stored_weights(self) -> dict[str, QuantizedWeight]:
        """See LoadedModel."""
        return self.stored(self.module)
