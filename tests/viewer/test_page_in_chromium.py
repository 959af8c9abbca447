"""The page in a real browser: its tables, its graph, its keys, and that nothing goes wrong or leaves the machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspark_compiler.config import CompileConfig
from dspark_compiler.graph.history import History
from dspark_compiler.passes.base import run_passes
from dspark_compiler.passes.pipeline import default_pipeline
from dspark_compiler.viewer.page import render_page
from tests.passes.capture import capture, tiny_model
from tests.viewer.browser import Page, chromium, new_page

CONFIG = CompileConfig(max_seq_len=64, prefill_widths=(16,), verify_width=4)
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
NAMES = [step.name for step in default_pipeline(CONFIG)]
NORMS = NAMES.index("fuse_rms_norm") + 1
EXPERTS = NAMES.index("fuse_experts") + 1


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    chromium()
    history = History()
    run_passes(default_pipeline(CONFIG), capture(tiny_model("llama")), history=history)
    path = tmp_path_factory.mktemp("page") / "passes.html"
    path.write_text(render_page(history.to_json(), "tiny llama", {"target": "cpu"}), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with new_page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, url: str) -> Iterator[Page]:
    browser.problems.clear()
    browser.requests.clear()
    browser.open("about:blank#")
    browser.open(url)
    yield browser
    assert browser.problems == []
    assert {address for address in browser.requests if not address.startswith(("data:", "about:"))} == {url}


def _row(page: Page, operator: str) -> list[str]:
    (text,) = [text for text in page.texts("#operators tbody tr") if text.startswith(operator)]
    return text.split()[1:]


def test_what_stands_there_at_first(page: Page):
    assert page.texts("h1") == ["tiny llama"]
    assert page.texts("h2")[0] == "1 canonicalize: prefill_16"
    assert [text.split("\n")[0] for text in page.texts(".step")] == [
        f"{number} {name}" for number, name in enumerate(["capture", *NAMES])
    ]
    assert page.texts("#entry option") == ["prefill_16", "decode", "verify_4", "commit"]
    assert any(text.startswith("aten.view: becomes aten.reshape") for text in page.texts("#matched summary"))


def test_another_pass_is_shown_when_it_is_chosen(page: Page):
    page.click(f"input[name=step][value='{NORMS}']")
    assert page.texts("h2")[0] == f"{NORMS} fuse_rms_norm: prefill_16"
    assert page.texts("#matched summary") == [f"WeightedNorm: dspark.rms_norm {TIMES} 5"]
    assert page.texts("#declined") == ["none in this entry point"]
    assert _row(page, "dspark.rms_norm") == ["0", "5", "+5"]
    assert _row(page, "aten.rsqrt") == ["5", "0", f"{MINUS}5"]
    # Both layers are alike and stand there as one.
    assert any(text.startswith("layers 0 to 1, alike") for text in page.texts(".part > summary"))
    opened = ".part[open] .panes > div:nth-child"
    assert page.evaluate(f"document.querySelectorAll('{opened}(1) .node.removed').length") >= 10
    assert page.evaluate(f"document.querySelectorAll('{opened}(2) .node.added').length") == 2
    assert "float32[1, 16, 32]" in "".join(page.texts(f"{opened}(2) .node.added text"))


def test_keys_alone_go_from_pass_to_pass_and_from_node_to_node(page: Page):
    page.evaluate("document.querySelector('input[name=step]:checked').focus()")
    for _ in range(NORMS - 1):
        page.press("ArrowDown")
    assert page.texts("h2")[0].startswith(f"{NORMS} ")
    page.evaluate("document.querySelector('.panes .node.added').focus()")
    name = page.evaluate("document.activeElement.dataset.name")
    page.press("Enter")
    assert page.evaluate("document.getElementById('details').hidden") is False
    assert f"dspark.rms_norm({name}" not in page.texts("#details dd")[0]
    assert page.texts("#details dd")[0].startswith("dspark.rms_norm(%")
    page.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.name") != name
    page.press("ArrowUp")
    assert page.evaluate("document.activeElement.dataset.name") == name
    page.press("Escape")
    assert page.evaluate("document.getElementById('details').hidden") is True


def test_a_rewrite_leads_to_its_node(page: Page, url: str):
    page.open(f"{url}#step={NORMS}&entry=decode")
    assert page.texts("h2")[0].endswith(": decode")
    page.click("#matched summary")
    second = "#matched li:nth-child(3) button"
    page.wait_for(second)
    (name,) = page.texts(second)
    page.click(second)
    assert page.evaluate("document.activeElement.dataset.name") == f"%{name}"
    assert page.texts("#details h2") == [f"%{name}"]


def test_every_pass_of_every_entry_point_can_be_opened(page: Page):
    opened = page.evaluate(
        "(() => { let count = 0;"
        "for (const option of [...at('entry').options]) for (const step of record.steps.keys()) {"
        " chosen.entry = option.value; chosen.step = step; show();"
        " for (const part of document.querySelectorAll('.part'))"
        "  for (const member of part.members) { part.drawMember(member); count += 1; } }"
        "return count; })()"
    )
    assert opened > 4 * len(NAMES)


def test_boxes_lie_beside_each_other(page: Page):
    page.click(f"input[name=step][value='{NORMS}']")
    overlaps = page.evaluate(
        "[...document.querySelectorAll('.part[open] svg')].flatMap(svg => {"
        " const boxes = [...svg.querySelectorAll('rect')].map(r => r.getBoundingClientRect());"
        " return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>"
        "  a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)); }).length"
    )
    assert overlaps == 0
    wide = "[...document.querySelectorAll('svg text')].every(t => t.getBBox().width < t.parentNode.getBBox().width)"
    assert page.evaluate(wide)


def test_a_pass_that_found_nothing_says_so(page: Page):
    page.click(f"input[name=step][value='{EXPERTS}']")
    assert page.texts("#matched") == ["none in this entry point"]
    assert page.texts(".part[open]") == []
    assert page.texts("#operators .total")[0].split()[-1] == "0"


def test_light_and_dark(page: Page, url: str, tmp_path: Path):
    def luminance(dark: bool) -> int:
        page.open(url, dark=dark)
        page.screenshot(tmp_path / f"{dark}.png")
        numbers = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        return sum(numbers[:3])

    assert luminance(dark=False) > 700
    assert luminance(dark=True) < 100
    assert (tmp_path / "True.png").stat().st_size > 10_000
