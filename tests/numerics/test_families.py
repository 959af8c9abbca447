"""Every family, from a checkpoint on disk to tokens out of the torch-free executor, against eager transformers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from dspark_compiler import CompileConfig, SamplingParams
from dspark_compiler.driver import compile_model
from dspark_compiler.errors import ArtifactError, InputError
from dspark_compiler.runtime.engine import Engine, load
from tests.tiny_models import TINY
from tests.tolerances import LOGITS
from tests.traces import one_process

_NEW = 32
# Long-rope models change their frequencies with the context they are compiled for; eager changes them at run time,
# so both must stay on one side of the original length.
_MAX_SEQ_LEN = {"phi3-longrope": 32}


def _compiled(name: str, folder: Path, arch: str | None = None) -> tuple[PreTrainedModel, Engine]:
    model = TINY[name]()
    model.save_pretrained(folder / "source")
    config = CompileConfig(
        arch=arch,
        output=folder / "model.dspark",
        max_seq_len=_MAX_SEQ_LEN.get(name, 64),
        max_batch=2,
        prefill_widths=(8,),
        verify_width=4,
        check=False,
    )
    compile_model(str(folder / "source"), config)
    return model, load(folder / "model.dspark")


def _prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, 100, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _eager(model: PreTrainedModel, prompt: list[int], tokens: Sequence[int]) -> list[int]:
    """The token eager chooses at the place of each of ``tokens``: one pass over all that came before."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens[:-1]]]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize("name", [pytest.param(name, marks=one_process(name)) for name in sorted(TINY)])
def test_family(name: str, tmp_path: Path) -> None:
    model, engine = _compiled(name, tmp_path)
    new = min(_NEW, _MAX_SEQ_LEN.get(name, 64) - 13)
    params = SamplingParams(max_new_tokens=new, ignore_eos=True)
    prompts = [_prompt(13, 1), _prompt(6, 2)]
    completions = engine.complete(prompts, params)
    for prompt, completion in zip(prompts, completions, strict=True):
        assert len(completion.tokens) == new
        assert list(completion.tokens) == _eager(model, prompt, completion.tokens)
    _check_logits(model, engine, prompts[0])
    _check_verify(engine, prompts[0], list(completions[0].tokens))


@one_process("llama-tied")
@pytest.mark.parametrize("arch", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_portable_architecture(arch: str, tmp_path: Path) -> None:
    """Other vector widths, other panels: the same tokens."""
    try:
        model, engine = _compiled("llama-tied", tmp_path, arch)
    except (ArtifactError, InputError) as error:
        pytest.skip(f"this machine cannot run {arch}: {error}")
    completion = engine.complete([_prompt(13, 1)], SamplingParams(max_new_tokens=_NEW, ignore_eos=True))[0]
    assert list(completion.tokens) == _eager(model, _prompt(13, 1), completion.tokens)
    _check_verify(engine, _prompt(13, 1), list(completion.tokens))


def _check_logits(model: PreTrainedModel, engine: Engine, prompt: list[int]) -> None:
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0, -1].numpy()
    np.testing.assert_allclose(engine.executor.prefill(0, prompt, 0, 0), expected, **LOGITS["float32"])


def _check_verify(engine: Engine, prompt: list[int], tokens: list[int]) -> None:
    """Verify's rows are decode's, bit for bit; a partial commit continues as if the rest had never been there."""
    executor, n = engine.executor, len(prompt)
    executor.prefill(0, prompt, 0, 0)
    rows = np.array([tokens[:4], tokens[:4]])
    verified = executor.verify(rows, n + np.arange(4), [n, 0])[0].copy()
    for i in range(4):
        decoded = executor.decode([tokens[i], 0], n + i, [n + i, 0], [1, 0])[0]
        np.testing.assert_array_equal(decoded, verified[i], err_msg=f"row {i}")
    wrong = np.array([[tokens[0], tokens[1], 1, 1]] * 2)
    executor.verify(wrong, n + np.arange(4), [n, 0])
    executor.commit([n, 0], [2, 0])
    again = executor.decode([tokens[2], 0], n + 2, [n + 2, 0], [1, 0])[0]
    np.testing.assert_array_equal(again, verified[2])
