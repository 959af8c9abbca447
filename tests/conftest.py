"""Fixtures every test can use."""

import difflib
import gc
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

_GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden texts instead of comparing with them")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What collecting imports stays: nobody looks through it for garbage, neither now nor later.

    Tests leave little garbage and keep much, as traced models: all of that is looked through ten times more seldom.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        gc.set_threshold(2_000, 10, 50)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module run in one process, which then makes it (a compile, often) once."""
    for item in items:
        if isinstance(item, pytest.Function) and (names := _shared_fixtures(item)):
            chosen = item.callspec.indices if hasattr(item, "callspec") else {}
            parts = [f"{name}{chosen.get(name, '')}" for name in names]
            item.add_marker(pytest.mark.xdist_group(f"{item.module.__name__}.{'.'.join(parts)}"))


def _shared_fixtures(item: pytest.Function) -> list[str]:
    """The module's fixtures that outlive a test and that this one uses."""
    if item.get_closest_marker("xdist_group"):
        return []
    found = item._fixtureinfo.name2fixturedefs
    return [name for name in sorted(found) if found[name][-1].scope != "function" and found[name][-1].baseid]


@pytest.fixture(autouse=True)
def traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal models are traced once a process."""
    capture = sys.modules.get("dspark_compiler.frontend.capture")
    if capture is None:  # nobody imported it, nor torch
        return
    from tests.traces import shared_traces

    monkeypatch.setattr(capture, "model_graph", shared_traces().trace)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)`` compares text with tests/golden/NAME.txt; the difference is the failure's message."""

    def compare(name: str, text: str) -> None:
        path = _GOLDEN / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
            return
        expected = path.read_text(encoding="utf-8") if path.exists() else ""
        if text != expected:
            lines = difflib.unified_diff(expected.splitlines(), text.splitlines(), str(path), "now", lineterm="")
            pytest.fail("\n".join(["differs from the golden text (--update-golden writes it anew)", *lines]))

    return compare
