"""``dspark doctor``: what works on this machine, and how to mend what does not."""

from dataclasses import asdict
from itertools import groupby

import click

from dspark_compiler.commands.base import Command, print_json
from dspark_compiler.errors import BackendUnavailableError

_STYLES = {"ok": "green", "missing": "red", "absent": "dim"}


@click.command("doctor", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor_command(as_json: bool) -> None:
    """Show what this machine can run and compile for, and the command that brings each missing piece."""
    from dspark_compiler.doctor import can_run, examine

    findings = examine()
    if as_json:
        print_json({"can_run": can_run(findings), "findings": [asdict(finding) for finding in findings]})
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(show_header=False, box=None)
        for section, group in groupby(findings, key=lambda finding: finding.section):
            table.add_row(f"[bold]{section}[/bold]")
            for finding in group:
                style = _STYLES[finding.status]
                fix = f"→ {finding.fix}" if finding.fix else ""
                table.add_row(
                    f"  {finding.name}", f"[{style}]{finding.status}[/{style}]", escape(finding.detail), escape(fix)
                )
        Console().print(table)
    if not can_run(findings):
        raise BackendUnavailableError("nothing can run here until what is missing for running artifacts is installed")
