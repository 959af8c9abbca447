"""What ``dspark eval`` can measure, one module a task."""

from collections.abc import Callable
from typing import Any

from dspark_compiler.bench.tasks.base import Context


def _perplexity(context: Context) -> dict[str, Any]:
    from dspark_compiler.bench.tasks.ppl import evaluate

    return evaluate(context)


def _agreement(context: Context) -> dict[str, Any]:
    from dspark_compiler.bench.tasks.agreement import evaluate

    return evaluate(context)


# Each returns its results by name; nested lists are shown only in the JSON.
TASKS: dict[str, Callable[[Context], dict[str, Any]]] = {
    "ppl": _perplexity,
    "agreement": _agreement,
}
