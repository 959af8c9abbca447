"""The Python packages this project asks for, against those installed."""

from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from dspark_compiler.doctor.findings import Finding, Status
from dspark_compiler.runtime.library import import_tvm_ffi

BASE = "running artifacts"
COMPILE = "compiling"

_PROJECT = "dspark-compile"
_FIXES = {BASE: f"pip install {_PROJECT}", COMPILE: f"pip install '{_PROJECT}[compile]'"}


def package_findings(section: str) -> Iterator[Finding]:
    """One finding for each package that BASE or COMPILE needs here, in the version it needs."""
    try:
        stated = metadata.requires(_PROJECT) or []
    except metadata.PackageNotFoundError:
        yield Finding(section, _PROJECT, Status.MISSING, "not installed, so its needs are unknown", _FIXES[section])
        return
    for requirement in map(Requirement, stated):
        if _belongs(requirement, section):
            yield _finding(section, requirement)
    if section == BASE:
        yield from _loadable()


def _belongs(requirement: Requirement, section: str) -> bool:
    marker = requirement.marker
    needed_by_base = marker is None or marker.evaluate({"extra": ""})
    if section == BASE:
        return needed_by_base
    return marker is not None and not needed_by_base and marker.evaluate({"extra": "compile"})


def _finding(section: str, requirement: Requirement) -> Finding:
    wanted = str(requirement.specifier)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(section, requirement.name, Status.MISSING, f"not installed, {wanted} needed", _FIXES[section])
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(
            section,
            requirement.name,
            Status.MISSING,
            f"{version} installed, {wanted} needed",
            f"pip install '{requirement.name}{wanted}'",
        )
    return Finding(section, requirement.name, Status.OK, version)


def _loadable() -> Iterator[Finding]:
    """Installed does not mean that its binaries load on this system."""
    try:
        import_tvm_ffi()
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        fix = "pip install --force-reinstall apache-tvm-ffi"
        yield Finding(BASE, "tvm_ffi loads", Status.MISSING, reason, fix)
    else:
        yield Finding(BASE, "tvm_ffi loads", Status.OK, "yes")
