"""Programs as the front end captures them; a process captures each once."""

from copy import deepcopy
from functools import cache

from transformers import PreTrainedModel

from dspark_compiler.config import CompileConfig
from dspark_compiler.frontend.capture import capture
from dspark_compiler.graph.program import Program


def captured(model: PreTrainedModel, config: CompileConfig) -> Program:
    """The program of a model that no test changes, such as one of ``tiny``; a copy of the caller's own."""
    read = CompileConfig(
        max_seq_len=config.max_seq_len,
        max_batch=config.max_batch,
        prefill_widths=config.chunk_widths,
        verify_width=config.verify_width,
        heads=config.heads,
    )
    return deepcopy(_captured(model, read))


@cache
def _captured(model: PreTrainedModel, config: CompileConfig) -> Program:
    return capture(model, config)
