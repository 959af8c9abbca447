from pathlib import Path

import pytest
import torch

from dspark_compiler.frontend.source import open_source
from dspark_compiler.training.heads.target import FrozenTarget
from tests.training.heads import tiny


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder."""
    return tiny.write_model(tmp_path_factory.mktemp("heads") / "tiny")


@pytest.fixture(scope="package")
def target(model: Path) -> FrozenTarget:
    return FrozenTarget(open_source(str(model)), torch.device("cpu"))
