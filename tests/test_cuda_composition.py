"""On a GPU everything composes: quantized weights and caches, pruning, drafts; against the CPU and against itself."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dspark_compiler import SamplingParams
from dspark_compiler.artifact import Artifact
from dspark_compiler.config import NGRAM
from dspark_compiler.quantization.weight_format import WeightFormat
from dspark_compiler.runtime.engine import Engine, load
from dspark_compiler.runtime.executor import Executor
from tests.frontend.test_quantized_folder import AWQ, awq, write
from tests.gpu import compiled, need_gpu, relative_error
from tests.tiny_models import TINY

pytestmark = pytest.mark.gpu

_ROUNDED = 0.03  # relative error of logits that operands of 8 significant bits leave
_PRUNED = {"kv_budget": 48, "max_seq_len": 96, "prefill_widths": (8,)}


@pytest.mark.parametrize(
    "options",
    [
        {"kv_dtype": "int8"},
        {"kv_dtype": "float8_e4m3", "dtype": "float16"},
        {"quantize": "int8"},
        {"quantize": "int4-g128", "dtype": "float16"},
        {"quantize": "fp8", "kv_dtype": "int8"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_logits_are_those_of_the_cpu(options: dict[str, Any], tmp_path: Path) -> None:
    need_gpu()
    gpu = Executor(Artifact.open(compiled("qwen3", tmp_path, **options)))
    place = {"target": "cpu", "arch": None, "dtype": None, "output": tmp_path / "cpu.dspark"}
    cpu = Executor(Artifact.open(compiled("qwen3", tmp_path, **(options | place))))
    ids = torch.randint(3, 100, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    for start, stop in ((0, 40), (40, 47)):  # a wide chunk and a narrow one
        found, wanted = (executor.prefill(0, ids[start:stop], start, start) for executor in (gpu, cpu))
        assert relative_error(found, wanted) < _ROUNDED
    tokens = np.zeros((2, 4), np.int64)
    tokens[0, :3] = ids[47:]
    length, count = np.array([47, 0]), np.array([1, 0])
    together = gpu.verify(tokens, np.arange(4) + length[:, None], length)[0].copy()
    wanted = cpu.verify(tokens, np.arange(4) + length[:, None], length)[0]
    assert relative_error(together[:3], wanted[:3]) < _ROUNDED
    for i in range(3):
        one = gpu.decode(tokens[:, i], length + i, length + i, count)[0]
        np.testing.assert_array_equal(one, together[i], err_msg="decode and verify agree bit for bit")


def test_codes_of_a_checkpoint_are_kept(tmp_path: Path) -> None:
    need_gpu()
    group = 32
    model = partial(TINY["llama"], hidden_size=2 * group, intermediate_size=3 * group)
    write(tmp_path / "source", AWQ | {"group_size": group}, WeightFormat("int4", group), awq, model)
    gpu = Executor(Artifact.open(compiled("llama", tmp_path, quantize="keep", dtype="float16")))
    place = {"target": "cpu", "arch": None, "output": tmp_path / "cpu.dspark"}
    cpu = Executor(Artifact.open(compiled("llama", tmp_path, quantize="keep", **place)))
    ids = torch.randint(3, 100, (47,), generator=torch.Generator().manual_seed(1)).tolist()
    for start, stop in ((0, 40), (40, 47)):  # a wide chunk and a narrow one
        found, wanted = (executor.prefill(0, ids[start:stop], start, start) for executor in (gpu, cpu))
        assert relative_error(found, wanted) < _ROUNDED


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": NGRAM},
        _PRUNED,
        {"heads": NGRAM, "kv_dtype": "int8", "quantize": "int8"},
        _PRUNED | {"heads": NGRAM, "kv_dtype": "float8_e4m3", "kv_policy": "expected-attention"},
        _PRUNED | {"heads": NGRAM, "kv_dtype": "int8", "kv_policy": "h2o", "quantize": "int4-g128"},
        _PRUNED | {"kv_dtype": "int8", "kv_policy": "keydiff"},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values() if isinstance(value, str | Path)) or "plain",
)
def test_greedy_answers_are_the_same_however_they_are_made(options: dict[str, Any], tmp_path: Path) -> None:
    need_gpu()
    path = compiled("llama", tmp_path, **({"prefill_widths": (8,)} | options))
    prompt = torch.randint(3, 100, (13,), generator=torch.Generator().manual_seed(1)).tolist()
    params = SamplingParams(max_new_tokens=60 if "kv_budget" in options else 40, ignore_eos=True)
    alone = load(path).complete([prompt], params)[0].tokens
    engine = Engine(Artifact.open(path), paced=False)
    assert engine.complete([prompt, prompt[:6]], params)[0].tokens == alone
    engine = Engine(Artifact.open(path), heads=False)
    assert engine.complete([prompt], params)[0].tokens == alone
