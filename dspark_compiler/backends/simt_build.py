"""From lowered modules to libraries, for the targets whose kernels are those of schedules/simt."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.relax.backend.gpu_generic.pipeline import dataflow_lower_passes, finalize_passes

from dspark_compiler.backends.calling import kernels_trust_callers
from dspark_compiler.errors import LoweringError
from dspark_compiler.schedules.gpu_rules import gpu_rules


def schedule_for(target: Any, module: Any) -> Any:
    """The module with threads bound in every function that came without."""
    # Views before the rules, which would make kernels of what is only another view.
    passes = [relax.transform.RewriteDataflowReshape(), gpu_rules(matrix_vector=False)]
    with target:
        return tvm.transform.Sequential(passes)(module)


def build_library(module: Any, target: Any, tir_pipeline: Any, library: Path, *, placing: Sequence[Any] = ()) -> None:
    """Writes the shared library of a scheduled module.

    ``placing``: passes that give some tensors memory before all others get theirs.

    Raises:
        LoweringError: TVM cannot build it.
    """
    passes = [*dataflow_lower_passes(target), *placing, *finalize_passes(target)]
    try:
        with target, kernels_trust_callers():
            executable = relax.build(
                module, target=target, relax_pipeline=tvm.transform.Sequential(passes), tir_pipeline=tir_pipeline
            )
        with tempfile.TemporaryDirectory(prefix="dspark-link-") as workspace:
            executable.export_library(str(library), workspace_dir=workspace)
    except (RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[-1] if lines else error
        raise LoweringError(f"--target {target.kind.name}: TVM could not build the module: {reason}") from error
