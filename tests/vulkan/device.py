"""What a test for Vulkan devices needs of a machine; where it has it, the validation layers watch every test."""

import functools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

VALIDATION = "DSPARK_VULKAN_VALIDATION"
LAVAPIPE = Path("/usr/share/vulkan/icd.d/lvp_icd.x86_64.json")

_LAYER = Path("/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json")


def need_vulkan() -> None:
    """Skips the test where our runtime cannot be built, or finds no device."""
    if reason := _lacking():
        pytest.skip(reason)


def need_assembler() -> None:
    """Skips the test where SPIR-V cannot be assembled."""
    if shutil.which("spirv-as") is None:
        pytest.skip("needs spirv-as (Debian: spirv-tools)")


def function(name: str) -> Any:
    """One of the runtime's own functions."""
    import tvm_ffi

    return tvm_ffi.get_global_func(f"dspark.vulkan.{name}")


def messages() -> list[str]:
    """What the validation layers had to say since this was asked last."""
    return [str(message) for message in function("messages")()]


def environment(**more: str) -> dict[str, str]:
    """For a process of its own, watched where the layers are installed."""
    return os.environ | ({VALIDATION: "1"} if _LAYER.exists() else {}) | more


@functools.cache
def _lacking() -> str:
    """Why there is nothing to test with; the runtime is loaded where there is."""
    from dspark_compiler.vulkan_runtime import library

    if not library.is_built() and (missing := library.missing()):
        return f"needs {' and '.join(missing)}"
    if _LAYER.exists():
        os.environ.setdefault(VALIDATION, "1")
    library.load()
    try:
        count = function("count")()
    except RuntimeError as error:
        return f"needs a Vulkan device: {str(error).splitlines()[-1]}"
    return "" if count else "needs a Vulkan device"
