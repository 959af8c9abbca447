"""``dspark inspect --graph``: a page of the passes an artifact went through, or those a model would go through."""

from pathlib import Path
from typing import TYPE_CHECKING

from dspark_compiler.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from dspark_compiler.viewer.record import Record


def write_page(named: str, page: Path, *, verify: bool) -> str:
    """Writes the page of an artifact or model to ``page``; returns what to tell of it.

    Raises:
        ArtifactError: the artifact is not whole, or was compiled before passes were recorded.
        InputError: ``page`` is a folder, or the model cannot be used.
        UnsupportedModelError: the model cannot be captured.
    """
    from dspark_compiler.viewer.page import render_page

    if page.is_dir():
        raise InputError(f"--graph {page}: is a folder; name a file, such as {page / 'passes.html'}")
    if not page.parent.is_dir():
        raise InputError(f"--graph {page}: there is no folder {page.parent}")
    title, facts, record = _of_artifact(named, verify) if _is_artifact(Path(named)) else _of_model(named)
    text = render_page(record, title, facts)
    page.write_text(text, encoding="utf-8")
    entries, steps = len(record["entries"]), len(record["steps"]) - 1
    return f"{page}: {steps} passes over {entries} entry points, {len(text.encode()) / 1e6:.1f} MB"


def _is_artifact(path: Path) -> bool:
    from dspark_compiler.artifact.manifest import MANIFEST

    return (path / MANIFEST).is_file()


def _of_artifact(named: str, verify: bool) -> tuple[str, dict[str, str], "Record"]:
    from dspark_compiler.artifact import Artifact
    from dspark_compiler.viewer.record import RECORD, unpack

    artifact = Artifact.open(named, verify=verify, runnable=False)
    data = artifact.read_bytes(RECORD)
    if data is None:
        raise ArtifactError(f"{named}: holds no record of its passes; compile again with this version")
    manifest = artifact.manifest
    quantization = manifest.quantization
    facts = {
        "target": f"{manifest.target.kind} {manifest.target.arch}",
        "weights": manifest.dtype if quantization is None else f"{manifest.dtype}, {quantization.scheme}",
        "cache": f"{manifest.kv.slots} slots of {manifest.kv.dtype}",
        "compiled by": f"dspark-compile {manifest.compiler_version}",
    }
    return manifest.model.name, facts, unpack(data, str(artifact.path / RECORD))


def _of_model(named: str) -> tuple[str, dict[str, str], "Record"]:
    from dspark_compiler.commands.progress import make_progress
    from dspark_compiler.config import CompileConfig
    from dspark_compiler.driver import record_passes

    with make_progress() as progress:
        name, record = record_passes(named, CompileConfig(target="cpu"), progress=progress)
    return name, {"source": named, "target": "cpu, options by default"}, record
