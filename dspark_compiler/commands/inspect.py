"""``dspark inspect``: what an artifact is, without running it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dspark_compiler.commands.base import Command, print_json
from dspark_compiler.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from dspark_compiler.artifact import Artifact


@click.command("inspect", cls=Command)
@click.argument("artifact", metavar="ARTIFACT")
@click.option("--no-verify", is_flag=True, help="Skip the check of the artifact's SHA-256 sums.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--graph",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write an HTML page of what each pass did to the graph instead.",
)
def inspect_command(artifact: str, no_verify: bool, as_json: bool, graph: Path | None) -> None:
    """Show model, target, entry points, sizes and compile report of ARTIFACT.

    With --graph ARTIFACT may be a model, too: its passes are run as a compile without options would, for the CPU.
    """
    from dspark_compiler.artifact import Artifact

    if graph is not None:
        from dspark_compiler.commands.graph_page import write_page

        if as_json:
            raise InputError("--json: --graph writes a page; give one of them")
        click.echo(write_page(artifact, graph, verify=not no_verify))
        return
    # Looking at an artifact for another machine is fine.
    opened = Artifact.open(artifact, verify=not no_verify, runnable=False)
    summary = summarize(opened)
    if as_json:
        print_json(summary)
        return
    from rich.console import Console

    console = Console()
    for table in _tables(summary):
        console.print(table)


def summarize(artifact: "Artifact") -> dict[str, Any]:
    """All that ``inspect`` shows, as JSON data; sizes in bytes.

    Raises:
        ArtifactError: report.json cannot be read.
    """
    from dspark_compiler.artifact import nbytes

    manifest = artifact.manifest
    data = manifest.to_json()
    files, params = data.pop("files"), data.pop("params")
    folders: dict[str, int] = {}
    for name, info in files.items():
        folder = name.split("/")[0] + "/" if "/" in name else "."
        folders[folder] = folders.get(folder, 0) + info["size"]
    report = artifact.read_text("report.json")
    weights = sum(nbytes(param) for param in manifest.params.values())
    states = sum(nbytes(state) for state in manifest.states.values())
    return {
        "path": str(artifact.path),
        **data,
        "parameters": {"count": len(params), "bytes": weights},
        "files": {"count": len(files), "bytes": artifact.size(), "folders": folders},
        "memory": {"weights": weights, "states": states, "total": weights + states},
        "report": None if report is None else json.loads(report),
    }


def _tables(summary: dict[str, Any]) -> Iterable["Table"]:
    kv, memory, files = summary["kv"], summary["memory"], summary["files"]
    yield _pairs(summary["path"], {name: value for name, value in summary["model"].items() if value is not None})
    target = summary["target"]
    yield _pairs(
        "target",
        {
            "kind": target["kind"],
            "arch": f"{target['arch']} ({target['triple']})",
            "needs": " ".join(target["cpu_features"]) or "nothing special",
            "dtype": summary["dtype"],
            "quantized": _quantized(summary["quantization"]),
            "sequences": f"{summary['max_batch']} of up to {summary['max_seq_len']} tokens",
            "cache": f"{kv['slots']} slots a sequence, {kv['dtype']}{_policy(kv['pruning'])}",
            "compiled by": f"dspark-compile {summary['compiler_version']}, TVM {summary['tvm_version']}",
        },
    )
    if summary["heads"] is not None:
        yield _pairs("heads", _heads(summary["heads"]))
    yield _entry_points(summary["entry_points"])
    yield _pairs(
        "size",
        {
            "files": f"{files['count']}, {_size(files['bytes'])}",
            **{folder: _size(size) for folder, size in files["folders"].items()},
            "memory at run": f"{_size(memory['total'])}: weights {_size(memory['weights'])}, "
            f"states {_size(memory['states'])}",
        },
    )
    if isinstance(summary["report"], dict):
        yield _pairs("report", dict(_flat(summary["report"])))


def _quantized(quantization: dict[str, Any] | None) -> str:
    if quantization is None:
        return "no weights"
    formats = ", ".join(f"{count} weights {tag}" for tag, count in quantization["weights"].items())
    return f"{quantization['scheme']}: {formats or 'no weights'}"


def _policy(pruning: dict[str, Any] | None) -> str:
    if pruning is None:
        return "; a slot for each token"
    return f"; {pruning['policy']} evicts {pruning['block']} at a time"


def _heads(heads: dict[str, Any]) -> dict[str, str]:
    """The drafter for people."""
    shown = {"type": heads["type"], "name": heads["name"], "drafts": f"{heads['block_size']} tokens a round"}
    if heads["confidence"]:
        temperatures = ", ".join(f"{value:g}" for value in heads["temperatures"])
        shown["confidence"] = f"calibrated, temperatures {temperatures}" if temperatures else "not calibrated"
        if heads["shifts"]:
            shown["confidence"] += f", shifts {', '.join(f'{value:g}' for value in heads['shifts'])}"
    times = heads["times"]
    if times is None:
        return shown | {"step times": "not measured; the first load does"}
    verify = "".join(f", {step['ms']:.2f} to verify {step['tokens']}" for step in times["verify"])
    return shown | {"step times": f"ms: {times['decode_ms']:.2f} to decode, {times['draft_ms']:.2f} to draft{verify}"}


def _pairs(title: str, pairs: dict[str, Any]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, min_width=48)
    for name, value in pairs.items():
        table.add_row(name, escape(str(value)))
    return table


def _entry_points(entries: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table("name", "kind", "batch", "width", "inputs", "outputs", title="entry points", title_justify="left")
    for name, entry in entries.items():
        inputs = " ".join(tensor["name"] for tensor in entry["inputs"])
        outputs = " ".join(f"{tensor['name']}{tensor['shape']}" for tensor in entry["outputs"])
        table.add_row(name, entry["kind"], str(entry["batch"]), str(entry["width"]), inputs, outputs)
    return table


def _flat(data: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """What the report sets, with dotted names; of a list of objects, such as the passes, only their names."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            names = (item.get("name", item) if isinstance(item, dict) else item for item in value)
            yield f"{prefix}{name}", ", ".join(map(str, names))
        elif value is not None:
            yield f"{prefix}{name}", value


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
