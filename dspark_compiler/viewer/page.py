"""One HTML file that holds all it needs: record, styles and scripts; it reads nothing from anywhere."""

import json
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from dspark_compiler.viewer.record import Record, count_operators, steps

_STYLES = ("page.css",)
_SCRIPTS = ("record.js", "layout.js", "drawing.js", "page.js")


def render_page(record: Record, title: str, facts: Mapping[str, str]) -> str:
    """The page of a record; ``facts`` stand below the title, by what they tell."""
    loader = PackageLoader("dspark_compiler.viewer", "assets")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)

    def source(name: str) -> str:
        return loader.get_source(environment, name)[0]

    return environment.get_template("page.html").render(
        title=title,
        facts=facts,
        steps=steps(record),
        counts={entry: count_operators(record, entry) for entry in record["entries"]},
        style="\n".join(map(source, _STYLES)),
        script="\n".join(map(source, _SCRIPTS)),
        # The one thing that could end a script element early is its end tag.
        data=json.dumps(record, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    )
