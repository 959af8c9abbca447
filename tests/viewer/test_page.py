"""The page holds its record whole and needs nothing else; what it shows is looked at in a browser."""

import json
import re

from dspark_compiler.viewer.page import render_page
from tests.viewer.test_record import RECORD


def test_the_page_holds_the_record():
    text = render_page(RECORD, "model <b>", {"target": "cpu"})
    (data,) = re.findall(r'<script type="application/json" id="record">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data) == RECORD
    assert "model &lt;b&gt;" in text
    assert "<dt>target</dt><dd>cpu</dd>" in text


def test_the_page_names_nothing_outside_itself():
    text = render_page(RECORD, "model", {})
    addresses = re.findall(r"""(?:src|href|url\(|import)\s*[=(]?\s*["']?([a-z]+:[^"')\s]*)""", text)
    assert set(addresses) <= {"data:,"}
    # The one other address is SVG's name, which nobody reads.
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}


def test_tables_stand_in_the_page_itself():
    text = render_page(RECORD, "model", {})
    assert "1 drop_negations" in text
    assert "2 rewritten, 1 declined" in " ".join(text.split())
    assert '<td data-step="1" class="fewer">1</td>' in text
