"""Tiny models on their way to AMD's GPUs: read once, made into kernels for each architecture."""

from pathlib import Path
from typing import Any

import pytest

from dspark_compiler import CompileConfig
from dspark_compiler.backends.rocm import build
from dspark_compiler.config import DType
from dspark_compiler.driver import settle
from dspark_compiler.frontend.source import open_source
from dspark_compiler.graph.program import Program
from dspark_compiler.lowering.layout import plan_layouts
from dspark_compiler.lowering.relax import lower
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from dspark_compiler.schedules.database import Records
from tests.rocm.tools import CodeObject, backend, code_object
from tests.tiny_models import TINY

SIZES: dict[str, Any] = {"max_seq_len": 64, "prefill_widths": (20,), "verify_width": 4, "max_batch": 2}


def program_of(name: str, dtype: DType, folder: Path, **options: Any) -> Program:
    """A tiny model's program after all passes."""
    TINY[name]().save_pretrained(folder)
    source = open_source(str(folder))
    config = settle(CompileConfig(target="rocm", dtype=dtype, **SIZES | options), source.info)
    program = source.load_for_compile().capture(config)
    return run_passes(default_pipeline(config, None, None), program)[0]


def kernels_of(program: Program, arch: str, dtype: DType, library: Path, monkeypatch: pytest.MonkeyPatch) -> CodeObject:
    """All kernels of a program, as they go into a library."""
    made: list[bytes] = []

    def pack(*args: Any) -> bytes:
        made.append(pack_module(*args))
        return made[-1]

    pack_module = build.pack_module
    monkeypatch.setattr(build, "pack_module", pack)
    rocm = backend(arch)
    lowered = lower(program, plan_layouts(program, rocm.layouts(dtype), dtype), None)
    rocm.build(rocm.schedule(lowered, Records.standard(arch)), library)
    (data,) = made
    return code_object(data)
