"""Every kernel of tiny models is code for an architecture of each kind, and takes no more of a GPU than it has.

Waves of 64: tests/test_rocm_artifact.py.
"""

from pathlib import Path
from typing import Any

import pytest

from dspark_compiler.config import DType
from tests.rocm.models import kernels_of, program_of
from tests.rocm.tools import fits, need_rocm

# Codes in weights and caches, eviction of slots, drawing of tokens.
_CODES: dict[str, Any] = {
    "quantize": "int8",
    "kv_dtype": "int8",
    "kv_budget": 160,  # an eighth of it is a chunk
    "kv_policy": "snapkv+h2o",
    "max_seq_len": 320,
}


@pytest.mark.parametrize(
    ("name", "dtype", "arch", "options", "kinds"),
    [
        ("qwen3", "bfloat16", "gfx1100", _CODES, ("attention_mass", "select_slots", "compact_slots", "token_probs")),
        ("mixtral", "float16", "gfx1201", {}, ("step_append_attention", "step_scratch_attention", "accept")),
    ],
    ids=["codes", "experts"],
)
def test_kernels_of_a_model(
    name: str,
    dtype: DType,
    arch: str,
    options: dict[str, Any],
    kinds: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need_rocm()
    program = program_of(name, dtype, tmp_path / "source", **options)
    made = kernels_of(program, arch, dtype, tmp_path / "model.so", monkeypatch)
    fits(made, arch)
    for kind in kinds:
        assert any(kernel.startswith(kind) for kernel in made.kernels), kind
    wide = [kernel for kernel in made.kernels if kernel.startswith("linear_20x32x")]
    assert wide
    for kernel in wide:
        assert any(line.startswith("v_wmma") for line in made.instructions(tmp_path, kernel)), kernel
