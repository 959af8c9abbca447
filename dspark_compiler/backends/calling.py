"""Host code that calls a GPU's kernels, and what the host code of all kernels leaves out."""

from typing import Any

import tvm

_HOST_LEVEL = "x86-64-v2"


def launching_host(triple: str) -> dict[str, str | int]:
    """The host of a GPU's target: code that puts arguments together and launches, which LLVM need not optimize."""
    return {"kind": "llvm", "mtriple": triple, "mcpu": _HOST_LEVEL, "opt-level": 0}


def kernels_trust_callers() -> Any:
    """The context to build in: kernels check none of their arguments.

    Only entry points call them, with tensors these made or checked; the checks were half of the host code.
    """
    return tvm.transform.PassContext(config={"tirx.disable_assert": True})
