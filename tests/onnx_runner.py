"""Runs a Program's emitted ONNX models in ONNX Runtime, in the place of its entry points."""

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from dspark_compiler.artifact.tensors import param_places, write_params
from dspark_compiler.config import DType
from dspark_compiler.graph.program import Program, Role
from dspark_compiler.lowering.onnx.models import plain_params, prepare, write_models
from tests.program_runner import ProgramRunner


def copied(program: Program) -> Program:
    """A program that can be rewritten without changing the other."""
    return copy.deepcopy(program)


class OnnxRunner(ProgramRunner):
    """As ProgramRunner; ``folder`` takes the models. States are new arrays after each call."""

    def __init__(self, program: Program, folder: Path, dtype: DType = "float32") -> None:
        program = copied(program)
        prepare(program, dtype)
        super().__init__(program)
        infos = dict(write_params(folder, plain_params(program)))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.sessions = {
            path.stem: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for path in write_models(program, folder, param_places(folder, infos))
        }

    def run(self, name: str, **inputs: Tensor) -> dict[str, Tensor]:
        entry, session = self.program.entries[name], self.sessions.get(name)
        if session is None:
            return {}
        feeds = {ref: tensor.numpy() for ref, tensor in inputs.items()}
        feeds |= {node.meta["ref"]: self.states[node.meta["ref"]].numpy() for node in entry.placeholders(Role.STATE)}
        names = [output.name for output in session.get_outputs()]
        made = {
            name: torch.from_numpy(np.array(value)) for name, value in zip(names, session.run(None, feeds), strict=True)
        }
        made = {name.removeprefix("next."): value for name, value in made.items()}
        self.states |= {name: value for name, value in made.items() if name in self.states}
        return {name: made[name] for name in entry.outputs}
