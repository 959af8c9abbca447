"""What ``dspark heads inspect`` says of decode heads."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from dspark_compiler.models.drafters.heads import Heads

_BYTES = 2  # a stored weight is bfloat16


def summarize(path: str, heads: "Heads", kind: str) -> dict[str, Any]:
    """All that ``inspect`` shows, as JSON data; sizes in bytes as stored."""
    config = heads.drafter.config
    counts: dict[str, int] = {}
    for name, tensor in heads.drafter.state_dict().items():
        part = name.split(".")[0]
        part = "heads" if part.isdecimal() else part
        counts[part] = counts.get(part, 0) + tensor.numel()
    total = sum(counts.values())
    calibration = heads.calibration
    return {
        "path": path,
        "kind": kind,
        "drafter": {
            "type": config.drafter_type,
            "backbone": config.backbone,
            "layers": config.num_hidden_layers,
            "block_size": config.block_size,
            "target_layer_ids": list(config.target_layer_ids),
            "mask_token_id": config.mask_token_id if config.drafter_type == "dspark" else None,
            "markov_head_type": config.markov_head_type if config.markov_rank else None,
            "markov_rank": config.markov_rank,
            "confidence_head": config.enable_confidence_head,
            "confidence_head_with_markov": config.confidence_head_with_markov,
            "context_window": config.context_window,
        },
        "parameters": {
            "count": total,
            "bytes": _BYTES * total,
            "parts": {part: {"count": count, "bytes": _BYTES * count} for part, count in counts.items()},
        },
        "target": asdict(heads.target),
        "calibration": None if calibration is None else asdict(calibration),
        "training": dict(heads.training),
    }


def tables(summary: dict[str, Any]) -> Iterable["Table"]:
    """The summary, to be read by people."""
    yield _pairs(f"{summary['path']}: {summary['kind']}", _drafter(summary["drafter"]))
    yield _pairs("target", {name: value for name, value in summary["target"].items() if value is not None})
    parameters = summary["parameters"]
    parts = {part: _amount(amount) for part, amount in parameters["parts"].items()}
    yield _pairs("parameters", {**parts, "total": _amount(parameters)})
    yield _pairs("calibration", _calibration(summary["calibration"], summary["drafter"]["confidence_head"]))
    if summary["training"]:
        yield _pairs("training", summary["training"])


def _drafter(drafter: dict[str, Any]) -> dict[str, Any]:
    head = f"{drafter['markov_head_type']}, rank {drafter['markov_rank']}"
    confidence = "hidden state and previous token" if drafter["confidence_head_with_markov"] else "hidden state"
    shown = {
        "type": drafter["type"],
        "backbone": f"{drafter['backbone']}, layers: {drafter['layers']}",
        "block": f"{drafter['block_size']} tokens (gamma)",
        "reads layers": ", ".join(map(str, drafter["target_layer_ids"])) or "the last hidden state",
        "looks back at": f"{drafter['context_window']} tokens",
    }
    if drafter["type"] == "dspark":
        shown["mask token"] = drafter["mask_token_id"]
        shown["sequential head"] = head if drafter["markov_rank"] else "none (DFlash)"
        shown["confidence reads"] = confidence if drafter["confidence_head"] else "nothing: no such head"
    return shown


def _calibration(calibration: dict[str, Any] | None, possible: bool) -> dict[str, Any]:
    if calibration is None:
        return {"state": "not calibrated yet (dspark heads calibrate)" if possible else "no confidence to calibrate"}
    return {
        "temperatures": _numbers(calibration["temperatures"]) or "not applied: they did not help",
        **({"shifts": _numbers(calibration["shifts"])} if calibration["shifts"] else {}),
        "ECE before": _numbers(calibration["ece_before"]),
        "ECE after": _numbers(calibration["ece_after"]),
        "AUC": _numbers(calibration["auc"]),
    }


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _amount(amount: dict[str, int]) -> str:
    return f"{amount['count']:,} ({amount['bytes'] / 1e6:.2f} MB)"


def _pairs(title: str, pairs: dict[str, Any]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", show_header=False, min_width=48)
    for name, value in pairs.items():
        table.add_row(escape(name), escape(str(value)))
    return table
