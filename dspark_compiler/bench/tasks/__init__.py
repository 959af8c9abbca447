"""What ``dspark eval`` can measure, one module a task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dspark_compiler.bench.tasks.base import Context


def _perplexity(context: Context) -> dict[str, Any]:
    from dspark_compiler.bench.tasks.ppl import evaluate

    return evaluate(context)


def _agreement(context: Context) -> dict[str, Any]:
    from dspark_compiler.bench.tasks.agreement import evaluate

    return evaluate(context)


def _needle(context: Context) -> dict[str, Any]:
    from dspark_compiler.bench.tasks.needle import evaluate

    return evaluate(context)


def _lambada(context: Context) -> dict[str, Any]:
    from dspark_compiler.bench.tasks.lambada import evaluate

    return evaluate(context)


def _lambada_stream(context: Context) -> dict[str, Any]:
    from dspark_compiler.bench.tasks.lambada import evaluate_stream

    return evaluate_stream(context)


@dataclass(frozen=True)
class Task:
    """``run`` returns its results by name (nested lists are shown only in the JSON); ``metric`` is the one to draw.

    A metric where higher is better is a fraction, at most 1.
    """

    run: Callable[[Context], dict[str, Any]]
    metric: str
    higher_is_better: bool = True


TASKS: dict[str, Task] = {
    "ppl": Task(_perplexity, "perplexity", higher_is_better=False),
    "agreement": Task(_agreement, "agreement"),
    "needle": Task(_needle, "accuracy"),
    "lambada": Task(_lambada, "accuracy"),
    "lambada-stream": Task(_lambada_stream, "accuracy"),
}
