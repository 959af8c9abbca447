"""The hook that puts our runtimes into wheels, on a builder that is none."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dspark_compiler import rocm_runtime, vulkan_runtime
from dspark_compiler.native.library import NativeLibrary

_ROOT = Path(__file__).parent.parent
_INTERFACE = "hatchling.builders.hooks.plugin.interface"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Any:
    interface = ModuleType(_INTERFACE)
    interface.BuildHookInterface = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, _INTERFACE, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", _ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.RuntimeHook()
    made.root, made.said = str(_ROOT), []
    made.app = SimpleNamespace(display_info=made.said.append)
    return made


def built(hook: Any, version: str = "standard") -> dict[str, Any]:
    data: dict[str, Any] = {"force_include": {}, "pure_python": True}
    hook.initialize(version, data)
    return data


def test_the_libraries_lie_beside_their_sources(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeLibrary, "missing", lambda self: [])
    monkeypatch.setattr(NativeLibrary, "build", lambda self, path: path.write_text(self.target))
    data = built(hook)
    for (source, place), library in zip(
        data["force_include"].items(), (vulkan_runtime.library, rocm_runtime.library), strict=True
    ):
        assert Path(source).read_text() == library.target
        assert _ROOT / place == library.folder / library.library_name()
    assert data["tag"].startswith("py3-none-")
    assert not data["pure_python"]
    hook.finalize("standard", data, "")
    assert not Path(source).exists()


def test_without_a_compiler_they_are_left_out(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert built(hook) == {"force_include": {}, "pure_python": True}
    needed = "runtime, which needs a C++ compiler (Debian: g++)"
    assert hook.said == [f"wheel without the {target} {needed}" for target in ("vulkan", "rocm")]
    hook.finalize("standard", {}, "")


def test_an_editable_install_builds_at_first_use(hook: Any) -> None:
    assert built(hook, "editable") == {"force_include": {}, "pure_python": True}
    assert not hook.said
