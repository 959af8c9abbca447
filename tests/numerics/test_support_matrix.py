"""docs/support-matrix.md says what the tests cover: it is written from the table of families and their tiny models."""

from pathlib import Path

import pytest

from dspark_compiler.models import FAMILIES
from tests.tiny_models import TINY

_PATH = Path(__file__).parents[2] / "docs" / "support-matrix.md"

_HEAD = """# Support matrix

Written by `make golden` from the families and the tiny models that the tests compile. Each variant is a checkpoint
of random weights that goes from disk through the compiler to the torch-free runtime. Its greedy tokens equal those of
eager transformers, its logits are within the tolerances of `tests/tolerances.py`, and a verified row equals a decoded
one bit for bit. A model type that is not listed is tried all the same, and refused with the module or operator that
stopped it. The same models come in as ONNX, too, where torch.onnx can export them: [onnx.md](onnx.md).

## Families, target cpu

| family | `model_type` | variants tested | remarks |
|---|---|---|---|
"""

_TARGETS = """
## Targets

| target | state |
|---|---|
| cpu, x86-64 | compiles and runs; AVX-512, AVX2 or SSE by `--arch native`, `x86-64-v4`, `-v3`, `-v2` |
| cpu, AArch64 | kernels are shaped for NEON; not yet run on hardware |
| cuda, sm_90a (H100, H200) | compiles with or without a GPU, and runs; [cuda.md](cuda.md) |
| cuda, later architectures | compile; not yet run on hardware |
| vulkan | compiles without a device; Vulkan 1.2, its matrices if any; ran on lavapipe, H100; [vulkan.md](vulkan.md) |
| rocm (gfx90a, gfx942, gfx1100, gfx1201) | built and checked, not yet run on hardware; [rocm.md](rocm.md) |
| onnxruntime | the same families; float32, float16, codes on the CPU, the last two on an H100; [onnx.md](onnx.md) |

## Weights

| `--dtype` | stored as | arithmetic |
|---|---|---|
| float32 | float32 | float32 |
| bfloat16, float16 | half the size; norms and biases stay float32 | float32; on GPUs sums alone |

## Cache

| `--kv-dtype` | stored as | arithmetic |
|---|---|---|
| float32 (cpu); the weights' type (cuda) | as named | float32; on GPUs sums alone |
| int8, float8_e4m3 | a byte an element, a float32 scale a token and head | likewise; exact in what GPUs multiply |
"""


def _variants() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, make in TINY.items():
        found.setdefault(make().config.model_type, []).append(name)
    return found


def _render() -> str:
    variants = _variants()
    rows = [
        f"| {family.title} | `{kind}` | {', '.join(sorted(variants[kind]))} | {family.note} |"
        for kind, family in FAMILIES.items()
    ]
    return _HEAD + "\n".join(rows) + "\n" + _TARGETS


def test_every_family_has_a_tiny_model() -> None:
    assert set(FAMILIES) == set(_variants())


def test_support_matrix_is_current(request: pytest.FixtureRequest) -> None:
    text = _render()
    if request.config.getoption("--update-golden"):
        _PATH.write_text(text, encoding="utf-8")
    assert _PATH.read_text(encoding="utf-8") == text, "make golden writes it anew"
