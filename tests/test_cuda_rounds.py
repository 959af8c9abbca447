"""Rounds on a GPU, each made before the last one is read: the tokens of plain decoding, alone and in a batch."""

import dataclasses
from pathlib import Path

import pytest
import torch

from dspark_compiler import CompileConfig, SamplingParams
from dspark_compiler.artifact import Artifact, StepTime, StepTimes
from dspark_compiler.driver import compile_model
from dspark_compiler.models.drafters.checkpoint import write_heads
from dspark_compiler.runtime.engine import Engine
from tests.gpu import ARCH, need_gpu
from tests.passes.test_attach_decode_heads import make_heads
from tests.tiny_models import TINY

# Drafting always seems to pay, or tiny models would park at once.
_TIMES = StepTimes(1.0, 0.0, (StepTime(2, 1.01), StepTime(4, 1.02)))
# Products read rows of whole 16 bytes.
_SIZES = {"markov_rank": 32, "head_dim": 16, "intermediate_size": 64}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("family", "kind", "options"), [("qwen3", "vanilla", {}), ("llama", "rnn", {"quantize_heads": "int8"})]
)
def test_rounds_give_the_tokens_of_plain_decoding(
    family: str, kind: str, options: dict[str, str], tmp_path: Path
) -> None:
    need_gpu()
    model, heads = TINY[family](), tmp_path / "heads"
    model.save_pretrained(tmp_path / "source")
    write_heads(heads, make_heads(model, kind, **_SIZES))
    sizes = {"max_seq_len": 64, "prefill_widths": (8,), "verify_width": 4, "max_batch": 2}
    config = CompileConfig(
        target="cuda", arch=ARCH, output=tmp_path / "a.dspark", heads=heads, check=False, **sizes, **options
    )
    artifact = compile_model(str(tmp_path / "source"), config)
    info = artifact.manifest.heads
    assert info is not None
    timed = dataclasses.replace(artifact.manifest, heads=dataclasses.replace(info, times=_TIMES))
    plain, unpaced = Engine(artifact, heads=False), Engine(artifact, paced=False)
    paced = Engine(Artifact(artifact.path, timed))
    prompts = [torch.randint(3, 100, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (13, 6)]
    for new in (1, 2, 7, 40, 48):
        params = SamplingParams(max_new_tokens=new, ignore_eos=True)
        expected = [c.tokens for c in plain.complete(prompts, params)]
        for engine in (unpaced, paced):
            assert [c.tokens for c in engine.complete(prompts, params)] == expected
            assert [engine.complete([prompt], params)[0].tokens for prompt in prompts] == expected
    assert unpaced.executor.device.obstacle is None
    # What the others captured leaves alone what a later one keeps.
    later = Engine(artifact, paced=False)
    for engine in (later, unpaced, later, unpaced):
        assert [c.tokens for c in engine.complete(prompts, params)] == expected
    params = SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=1.0, top_p=0.9, top_k=20, seed=1)
    for engine in (unpaced, paced):
        together = [c.tokens for c in engine.complete(prompts, params)]
        assert together == [engine.complete([prompt], params)[0].tokens for prompt in prompts]
