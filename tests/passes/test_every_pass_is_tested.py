"""A pass without a test file, or one that breaks the naming rules, does not get in."""

import importlib
import inspect
from pathlib import Path

import pytest

import dspark_compiler.passes
from dspark_compiler.config import NGRAM, CompileConfig
from dspark_compiler.passes.base import Pass
from dspark_compiler.passes.pipeline import default_pipeline

_FOLDER = Path(dspark_compiler.passes.__file__).parent
# Asks for what runs on request only, too.
_EVERYTHING = (
    CompileConfig(max_seq_len=80, kv_dtype="int8", kv_budget=64, heads=NGRAM),
    CompileConfig(max_seq_len=80, quantize="int4-g128-awq"),
    CompileConfig(max_seq_len=80, quantize="keep"),
    CompileConfig(target="cuda", max_seq_len=80, quantize="int8"),
    CompileConfig(max_seq_len=80, heads=Path("heads"), quantize_heads="int8"),
)
_MODULES = sorted(p.stem for p in _FOLDER.glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("module", _MODULES)
def test_each_module_has_a_test_file(module):
    assert (Path(__file__).parent / f"test_{module}.py").is_file()


@pytest.mark.parametrize("module", [m for m in _MODULES if m not in ("base", "pipeline")])
def test_each_pass_is_named_after_its_file_and_runs(module):
    members = vars(importlib.import_module(f"dspark_compiler.passes.{module}")).values()
    own = [m for m in members if inspect.isclass(m) and issubclass(m, Pass) and m is not Pass]
    (one,) = [m for m in own if m.__module__.endswith(f".{module}")]
    assert one.name == module
    assert one.__name__.lower() == module.replace("_", "")
    assert one in [type(p) for config in _EVERYTHING for p in default_pipeline(config)]
