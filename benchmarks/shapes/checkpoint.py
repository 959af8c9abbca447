"""A checkpoint of a shape with random weights, and its weights for an artifact that was built without any."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.shapes.models import shape_config
from dspark_compiler.artifact import Artifact
from dspark_compiler.compare.origin import recorded_config
from dspark_compiler.frontend.capture import capture
from dspark_compiler.frontend.source import open_source
from dspark_compiler.lowering.layout import physical_params, plan_layouts
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from dspark_compiler.schedules.cuda.layouts import FragmentLayouts


def write_checkpoint(shape: str, folder: Path, layers: int | None = None) -> None:
    """Writes the model as a folder of transformers', in bfloat16; uses a GPU if there is one."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(shape_config(shape, layers), dtype=torch.bfloat16)
    model.save_pretrained(folder)


def params_of(artifact: Artifact, model: str) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's weights as the artifact's library wants them; needs no TVM.

    An artifact's options, which ``build`` recorded, say what is done to them.
    """
    config = recorded_config(artifact)
    program = capture(open_source(model).load(torch.float32), config)
    program, _ = run_passes(default_pipeline(config), program)
    layouts = FragmentLayouts(artifact.manifest.dtype, artifact.manifest.target.arch)
    return physical_params(program, plan_layouts(program, layouts, config.weight_dtype))
