"""What --target rocm composes beyond tests/test_rocm_artifact.py: kernels, and calls of HIP that a fake checks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark_compiler import CompileConfig
from dspark_compiler.driver import compile_model
from dspark_compiler.models.drafters.checkpoint import write_heads
from dspark_compiler.models.surrogate import write_surrogate
from dspark_compiler.quantization.weight_format import WeightFormat
from tests.frontend.test_quantized_folder import AWQ, awq, write
from tests.passes.test_attach_decode_heads import make_heads
from tests.passes.test_kvzap_policy import surrogate
from tests.rocm.machine import ALL_ENTRIES, Machine
from tests.rocm.models import SIZES
from tests.rocm.tools import fits, kernels_in, need_rocm
from tests.runtime.toy import tokenizer
from tests.tiny_models import TINY

_GROUP = 32
_BYTES = 260  # tokens of the toy's tokenizer
# An eighth of the budget is a chunk.
_PRUNED: dict[str, Any] = {"kv_budget": 160, "max_seq_len": 320, "verify_width": 3}
Make = Callable[[Path], tuple[torch.nn.Module, dict[str, Any]]]


def _kept_codes(folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Codes with offsets as a checkpoint has them, and a trained policy whose budgets fall with depth."""
    model = partial(TINY["llama"], hidden_size=2 * _GROUP, intermediate_size=3 * _GROUP)
    write(folder / "source", AWQ | {"group_size": _GROUP}, WeightFormat("int4", _GROUP), awq, model)
    write_surrogate(folder / "kvzap.safetensors", surrogate(hidden=2 * _GROUP))
    return model(), {"quantize": "keep", "kv_policy": "pyramid:kvzap", "kv_weights": folder / "kvzap.safetensors"}


def _scaled_channels(folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Codes made here after a look at what they are multiplied by, and slots chosen by what keys look like."""
    model = TINY["qwen3"](vocab_size=_BYTES)
    model.save_pretrained(folder / "source")
    tokenizer().save(str(folder / "source/tokenizer.json"))
    return model, {"quantize": "int4-g128-awq", "kv_policy": "keydiff", "dtype": "float16"}


@pytest.mark.parametrize(
    ("arch", "make", "kinds"),
    [
        ("gfx90a", _kept_codes, ("int4", "select_slots")),
        ("gfx1201", _scaled_channels, ("select_slots", "block_step")),
    ],
    ids=["keep-pyramid-kvzap-rnn", "awq-keydiff-rnn"],
)
def test_every_entry_point_is_launched(arch: str, make: Make, kinds: tuple[str, ...], tmp_path: Path) -> None:
    need_rocm()
    model, options = make(tmp_path)
    write_heads(tmp_path / "heads", make_heads(model, "rnn", head_dim=16))
    sizes = SIZES | _PRUNED | options
    config = CompileConfig(
        target="rocm", arch=arch, output=tmp_path / "model.dspark", heads=tmp_path / "heads", **sizes
    )
    path = compile_model(str(tmp_path / "source"), config).path
    made = kernels_in(path / "lib/model.so")
    fits(made, arch)
    for kind in kinds:
        assert any(kind in name for name in made.kernels), kind
    machine = Machine(tmp_path)
    done = machine.run("-c", ALL_ENTRIES, str(path), FAKE_HIP_GPUS=arch)
    assert (done.returncode, done.stderr) == (0, "")
    assert not [line for line in machine.log() if line.startswith("WRONG")]
    assert done.stdout == "accept_1 accept_3 commit decode draft evict prefill_20 verify_3\n"
    assert f"loaded for {arch}" in machine.log()
