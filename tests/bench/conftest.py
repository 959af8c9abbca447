"""Artifacts that several files measure."""

from pathlib import Path

import pytest

from dspark_compiler.artifact import Artifact
from tests.bench import tiny
from tests.runtime import toy


@pytest.fixture(scope="session")
def toy_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write(tmp_path_factory.mktemp("bench") / "toy.dspark")


@pytest.fixture(scope="session")
def tiny_source() -> Path:
    return tiny.source()


@pytest.fixture(scope="session")
def tiny_artifact() -> Artifact:
    return tiny.compiled()
