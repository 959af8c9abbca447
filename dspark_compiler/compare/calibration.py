"""What ``--quantize`` takes of a source: its text's token ids, or the codes its weights are kept as."""

from pathlib import Path
from tempfile import TemporaryDirectory

from dspark_compiler.compare.prompts import long_text
from dspark_compiler.config import CompileConfig
from dspark_compiler.errors import InputError
from dspark_compiler.frontend.checkpoint import TOKENIZER_FILES, Source
from dspark_compiler.frontend.loaded import LoadedModel
from dspark_compiler.quantization.source import QuantizationSource
from dspark_compiler.runtime.tokenizer import Tokenizer

# Tokens a model is watched reading; the novel's, since the other built-in text is what the outcome is judged by.
_TOKENS = 1024


def quantization_source(config: CompileConfig, source: Source, model: LoadedModel) -> QuantizationSource:
    """What the passes for ``config.quantize`` take.

    Raises:
        InputError: a checkpoint without quantized weights, a source without a tokenizer, or a text that cannot be read.
    """
    if config.quantize == "int4-g128-awq":
        return QuantizationSource(text=_text(config, source))
    if config.quantize != "keep":
        return QuantizationSource()
    stored = model.stored_weights()
    if not stored:
        raise InputError(f"{source.path}: --quantize keep: no linear has weights quantized in a form that can be kept")
    return QuantizationSource(stored=stored)


def _text(config: CompileConfig, source: Source) -> list[int]:
    text = long_text()
    if config.calibration is not None:
        try:
            text = config.calibration.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--calibration {config.calibration}: cannot be read ({error})") from error
    with TemporaryDirectory(prefix="dspark-tokenizer-") as folder:
        if TOKENIZER_FILES[0] not in source.write_tokenizer(Path(folder)):
            raise InputError(f"{source.path}: --quantize int4-g128-awq reads a text, and there is no tokenizer")
        tokenizer = Tokenizer((Path(folder) / TOKENIZER_FILES[0]).read_text(encoding="utf-8"), str(source.path))
    tokens = tokenizer.encode(text)[:_TOKENS]
    if len(tokens) < 2:
        raise InputError(f"--calibration {config.calibration}: holds no text")
    return tokens
